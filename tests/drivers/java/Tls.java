package drivers;

import com.mongodb.MongoClientSettings;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.Base64;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** The options of connection strings that name files, which this driver leaves to the application. */
final class Tls {
    private static final char[] NO_PASSWORD = {};

    private Tls() {}

    /** What {@code tlsCAFile} and {@code tlsCertificateKeyFile} say, if they are there. */
    static void apply(String uri, MongoClientSettings.Builder settings) {
        String authorities = option(uri, "tlsCAFile");
        if (authorities == null) {
            return;
        }
        try {
            KeyStore trusted = empty();
            trusted.setCertificateEntry("authority", certificate(Files.readString(Path.of(authorities))));
            TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            trust.init(trusted);
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(keys(option(uri, "tlsCertificateKeyFile")), trust.getTrustManagers(), null);
            settings.applyToSslSettings(ssl -> ssl.context(context));
        } catch (GeneralSecurityException | IOException error) {
            throw new IllegalArgumentException(error);
        }
    }

    private static String option(String uri, String name) {
        Matcher found = Pattern.compile("[?&]" + name + "=([^&]*)").matcher(uri);
        return found.find() ? URLDecoder.decode(found.group(1), StandardCharsets.UTF_8) : null;
    }

    /** From a file with a certificate and its key, which is one of elliptic curves. */
    private static KeyManager[] keys(String file) throws GeneralSecurityException, IOException {
        if (file == null) {
            return null;
        }
        String pem = Files.readString(Path.of(file));
        byte[] encoded = Base64.getMimeDecoder().decode(section(pem, "PRIVATE KEY"));
        PrivateKey key = KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(encoded));
        KeyStore own = empty();
        own.setKeyEntry("own", key, NO_PASSWORD, new Certificate[] {certificate(pem)});
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(own, NO_PASSWORD);
        return keys.getKeyManagers();
    }

    private static KeyStore empty() throws GeneralSecurityException, IOException {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        return store;
    }

    private static Certificate certificate(String pem) throws GeneralSecurityException {
        byte[] encoded = Base64.getMimeDecoder().decode(section(pem, "CERTIFICATE"));
        return CertificateFactory.getInstance("X.509").generateCertificate(new ByteArrayInputStream(encoded));
    }

    private static String section(String pem, String label) {
        String begin = "-----BEGIN " + label + "-----";
        int from = pem.indexOf(begin) + begin.length();
        return pem.substring(from, pem.indexOf("-----END " + label + "-----", from));
    }
}
