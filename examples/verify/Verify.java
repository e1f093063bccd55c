import com.nimbusds.jose.JOSEObjectType;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.jwk.source.JWKSourceBuilder;
import com.nimbusds.jose.proc.DefaultJOSEObjectTypeVerifier;
import com.nimbusds.jose.proc.JWSVerificationKeySelector;
import com.nimbusds.jose.proc.SecurityContext;
import com.nimbusds.jwt.JWTClaimsSet;
import com.nimbusds.jwt.proc.DefaultJWTClaimsVerifier;
import com.nimbusds.jwt.proc.DefaultJWTProcessor;
import java.net.URI;
import java.util.Scanner;
import java.util.Set;

/** Verifies access tokens without asking Keyturn. Reads one from each line, and says who sent it. */
class Verify {
    /** Checks access tokens after RFC 9068 section 4. Made once, because it keeps the keys. */
    static DefaultJWTProcessor<SecurityContext> verifier(String keyturn, String issuer) throws Exception {
        var keys = JWKSourceBuilder.create(URI.create(keyturn + "/.well-known/jwks.json").toURL()).build();
        var claims = new DefaultJWTClaimsVerifier<SecurityContext>(
            issuer, // the audience
            new JWTClaimsSet.Builder().issuer(issuer).build(),
            Set.of("sub", "exp", "iat", "jti", "sid", "client_id", "role"));
        claims.setMaxClockSkew(5); // seconds: clocks differ
        var verifier = new DefaultJWTProcessor<SecurityContext>();
        verifier.setJWSTypeVerifier(new DefaultJOSEObjectTypeVerifier<>(new JOSEObjectType("at+jwt")));
        verifier.setJWSKeySelector(new JWSVerificationKeySelector<>(JWSAlgorithm.ES256, keys));
        verifier.setJWTClaimsSetVerifier(claims);
        return verifier;
    }

    public static void main(String[] arguments) throws Exception {
        var verifier = verifier(System.getenv("KEYTURN"), System.getenv("ISSUER"));
        for (var lines = new Scanner(System.in); lines.hasNextLine(); ) {
            try {
                System.out.println(verifier.process(lines.nextLine(), null).getSubject());
            } catch (Exception refused) {
                System.out.println("refused");
            }
        }
    }
}
