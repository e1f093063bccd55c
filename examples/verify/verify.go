// Verifies access tokens without asking Keyturn. Reads one from each line, and says who sent it.
package main

import (
	"bufio"
	"fmt"
	"os"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

// Verified checks an access token after RFC 9068 section 4. `keys` is made once, because it keeps the keys.
func Verified(raw string, keys jwt.Keyfunc, issuer string) (jwt.MapClaims, error) {
	claims := jwt.MapClaims{}
	token, err := jwt.ParseWithClaims(raw, claims, keys,
		jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer(issuer), jwt.WithAudience(issuer),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(5*time.Second)) // clocks differ
	if err != nil {
		return nil, err
	}
	if token.Header["typ"] != "at+jwt" {
		return nil, fmt.Errorf("not an access token")
	}
	for _, name := range []string{"sub", "iat", "jti", "sid", "client_id", "role"} {
		if claims[name] == nil {
			return nil, fmt.Errorf("without %s", name)
		}
	}
	return claims, nil
}

func main() {
	keys, err := keyfunc.NewDefault([]string{os.Getenv("KEYTURN") + "/.well-known/jwks.json"})
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if claims, err := Verified(lines.Text(), keys.Keyfunc, os.Getenv("ISSUER")); err != nil {
			fmt.Println("refused")
		} else {
			fmt.Println(claims["sub"])
		}
	}
}
