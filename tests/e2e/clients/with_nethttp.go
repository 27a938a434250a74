// net/http through a proxy. PROXY, CA, METHOD, BODY and URLS from the environment; a line of answer for each URL.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

func fetch(client *http.Client, address string) (int, []byte, error) {
	request, err := http.NewRequest(os.Getenv("METHOD"), address, strings.NewReader(os.Getenv("BODY")))
	if err != nil {
		return 0, nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, body, err
}

func main() {
	proxy, err := url.Parse(os.Getenv("PROXY"))
	if err != nil {
		panic("PROXY is no URL")
	}
	ca, err := os.ReadFile(os.Getenv("CA"))
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{
		Timeout: 15 * time.Second,
		Transport: &http.Transport{
			Proxy:           http.ProxyURL(proxy),
			TLSClientConfig: &tls.Config{RootCAs: roots},
		},
	}
	for _, address := range strings.Fields(os.Getenv("URLS")) {
		status, body, err := fetch(client, address)
		if err != nil {
			fmt.Println("error", err)
			continue
		}
		fmt.Println(status, base64.StdEncoding.EncodeToString(body))
	}
}
