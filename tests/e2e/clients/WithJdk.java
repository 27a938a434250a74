// java.net.http through a proxy. PROXY, CA, METHOD, BODY and URLS from the environment; a line of answer for each URL.

import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.Authenticator;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.Base64;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

class WithJdk {
    static SSLContext trusting(String caFile) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream in = new FileInputStream(caFile)) {
            store.setCertificateEntry("lab", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }

    static HttpClient through(URI proxy, SSLContext tls) {
        String[] user = proxy.getUserInfo().split(":", 2);
        return HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)
            .proxy(ProxySelector.of(new InetSocketAddress(proxy.getHost(), proxy.getPort())))
            .authenticator(new Authenticator() {
                @Override
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication(user[0], user[1].toCharArray());
                }
            })
            .sslContext(tls)
            .build();
    }

    public static void main(String[] arguments) throws Exception {
        var env = System.getenv();
        HttpClient client = through(URI.create(env.get("PROXY")), trusting(env.get("CA")));
        var body = env.get("BODY").isEmpty()
            ? HttpRequest.BodyPublishers.noBody()
            : HttpRequest.BodyPublishers.ofString(env.get("BODY"));
        for (String url : env.get("URLS").split(" ")) {
            var request = HttpRequest.newBuilder(URI.create(url))
                .timeout(Duration.ofSeconds(15)).method(env.get("METHOD"), body).build();
            try {
                var answer = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
                System.out.println(answer.statusCode() + " " + Base64.getEncoder().encodeToString(answer.body()));
            } catch (IOException error) {
                System.out.println("error " + error.getMessage());
            }
        }
    }
}
