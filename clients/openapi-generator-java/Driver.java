import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.AuthApi;
import org.openapitools.client.model.ErrorAnswer;
import org.openapitools.client.model.Login;
import org.openapitools.client.model.Logout;
import org.openapitools.client.model.Refresh;
import org.openapitools.client.model.TokenAnswer;

/** Uses the client that openapi-generator makes for Java: {@code java Driver URL PASSWORD}. */
class Driver {
    public static void main(String[] given) throws Exception {
        ApiClient client = new ApiClient();
        client.updateBaseUri(given[0]);
        AuthApi anonymous = new AuthApi(client);
        TokenAnswer first = anonymous.login(new Login().email("admin@localhost").password(given[1]));
        Refresh body = new Refresh().refreshToken(first.getRefreshToken());
        TokenAnswer second = anonymous.refresh(null, body);
        TokenAnswer again = anonymous.refresh(null, body);
        System.out.println(second.getRefreshToken().equals(again.getRefreshToken()) ? "same refresh token" : "another");

        client.setRequestInterceptor(request -> request.header("Authorization", "Bearer " + second.getAccessToken()));
        AuthApi signedIn = new AuthApi(client);
        System.out.println(signedIn.me().getUser().getEmail());

        Logout end = new Logout().refreshToken(second.getRefreshToken());
        System.out.println(anonymous.logoutWithHttpInfo(end).getStatusCode());
        try {
            signedIn.me();
        } catch (ApiException refused) {
            ErrorAnswer answer = client.getObjectMapper().readValue(refused.getResponseBody(), ErrorAnswer.class);
            System.out.println(refused.getCode() + " " + answer.getError() + " " + answer.getReason());
        }
    }
}
