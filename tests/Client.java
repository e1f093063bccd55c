import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** A session with Java's own client as it comes. Arguments: base URL, e-mail, password. Prints one status a line. */
class Client {
    static final HttpClient CLIENT = HttpClient.newHttpClient();
    static String base;

    public static void main(String[] arguments) throws Exception {
        base = arguments[0];
        String credentials = "{\"email\":\"" + arguments[1] + "\",\"password\":\"" + arguments[2] + "\"}";
        String tokens = send("login", post("/auth/login", BodyPublishers.ofString(credentials)));
        for (int turn = 0; turn < 3; turn++) {
            String body = "{\"refresh_token\":\"" + member(tokens, "refresh_token") + "\"}";
            // A body of unknown length is sent in chunks.
            BodyPublisher publisher = turn == 1
                ? BodyPublishers.fromPublisher(BodyPublishers.ofString(body))
                : BodyPublishers.ofString(body);
            tokens = send("refresh", post("/auth/refresh", publisher).expectContinue(turn == 2));
            String bearer = "Bearer " + member(tokens, "access_token");
            send("verify", to("/auth/verify").GET().header("Authorization", bearer));
            send("verify", to("/auth/verify/x").method("PURGE-ALL", BodyPublishers.noBody()).header("Authorization", bearer));
            send("me", to("/auth/me").GET().header("Authorization", bearer));
        }
        String bearer = "Bearer " + member(tokens, "access_token");
        send("logout", to("/auth/logout").POST(BodyPublishers.noBody()).header("Authorization", bearer));
        send("verify", to("/auth/verify").GET().header("Authorization", bearer));
    }

    static HttpRequest.Builder to(String path) {
        return HttpRequest.newBuilder(URI.create(base + path));
    }

    static HttpRequest.Builder post(String path, BodyPublisher body) {
        return to(path).POST(body).header("Content-Type", "application/json");
    }

    static String send(String what, HttpRequest.Builder request) throws Exception {
        HttpResponse<String> answer = CLIENT.send(request.build(), BodyHandlers.ofString());
        System.out.println(what + " " + answer.statusCode());
        return answer.body();
    }

    static String member(String json, String name) {
        Matcher found = Pattern.compile("\"" + name + "\":\"([^\"]+)\"").matcher(json);
        if (!found.find()) {
            throw new IllegalStateException("no " + name + " in the answer");
        }
        return found.group(1);
    }
}
