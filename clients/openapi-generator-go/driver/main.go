// Uses the client that openapi-generator makes for Go: `go run ./driver URL PASSWORD`.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	keyturn "example.com/keyturn/client"
)

func main() {
	settings := keyturn.NewConfiguration()
	settings.Servers = keyturn.ServerConfigurations{{URL: os.Args[1]}}
	auth := keyturn.NewAPIClient(settings).AuthAPI
	ctx := context.Background()

	first, _, err := auth.Login(ctx).Login(*keyturn.NewLogin("admin@localhost", os.Args[2])).Execute()
	if err != nil {
		log.Fatal(err)
	}
	body := *keyturn.NewRefresh()
	body.SetRefreshToken(first.GetRefreshToken())
	second, _, err := auth.Refresh(ctx).Refresh(body).Execute()
	if err != nil {
		log.Fatal(err)
	}
	again, _, err := auth.Refresh(ctx).Refresh(body).Execute()
	if err != nil {
		log.Fatal(err)
	}
	if second.GetRefreshToken() == again.GetRefreshToken() {
		fmt.Println("same refresh token")
	}

	signedIn := context.WithValue(ctx, keyturn.ContextAccessToken, second.GetAccessToken())
	mine, _, err := auth.Me(signedIn).Execute()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(mine.User.GetEmail())

	_, out, err := auth.Logout(signedIn).Execute()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(out.StatusCode)
	_, response, err := auth.Me(signedIn).Execute()
	var refused *keyturn.GenericOpenAPIError
	if errors.As(err, &refused) {
		answer := refused.Model().(keyturn.ErrorAnswer)
		fmt.Println(response.StatusCode, answer.GetError(), answer.GetReason())
	}
}
