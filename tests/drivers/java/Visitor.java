package drivers;

import com.mongodb.ConnectionString;
import com.mongodb.MongoClientSettings;
import com.mongodb.MongoException;
import com.mongodb.client.MongoClient;
import com.mongodb.client.MongoClients;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import org.bson.Document;

/** Obeys the orders of {@code tests/drivers/logins}; {@code python/visitor.py} says what is asked and answered. */
final class Visitor {
    private final Map<String, MongoClient> clients = new HashMap<>();

    private Visitor() {}

    public static void main(String[] arguments) throws IOException {
        Visitor visitor = new Visitor();
        BufferedReader orders = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = orders.readLine(); line != null; line = orders.readLine()) {
            Document answer;
            try {
                answer = visitor.obey(Document.parse(line));
            } catch (RuntimeException error) {
                answer = new Document("error", told(error));
            }
            System.out.println(answer.toJson());
        }
    }

    private Document obey(Document order) {
        if (order.containsKey("open")) {
            String uri = order.getString("uri");
            MongoClientSettings.Builder settings =
                    MongoClientSettings.builder().applyConnectionString(new ConnectionString(uri));
            Tls.apply(uri, settings);
            clients.put(order.getString("open"), MongoClients.create(settings.build()));
        } else if (order.containsKey("close")) {
            clients.remove(order.getString("close")).close();
        } else {
            MongoClient client = clients.get(order.getString("on"));
            Document command = order.get("run", Document.class);
            return new Document("reply", client.getDatabase(order.getString("db")).runCommand(command));
        }
        return new Document();
    }

    /** The server's error is a cause of the driver's own where a log-in failed. */
    private static Document told(RuntimeException error) {
        Integer code = null;
        StringBuilder message = new StringBuilder();
        for (Throwable one = error; one != null; one = one.getCause()) {
            if (one instanceof MongoException exception && exception.getCode() > 0) {
                code = exception.getCode();
            }
            message.append(message.isEmpty() ? "" : ": ").append(one.getMessage());
        }
        return Scenario.doc("kind", error.getClass().getSimpleName(), "code", code, "message", message.toString());
    }
}
