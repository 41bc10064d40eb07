package drivers;

import com.mongodb.MongoClientSettings;
import com.mongodb.connection.ClusterDescription;
import com.mongodb.connection.ClusterType;
import com.mongodb.connection.ServerType;
import com.mongodb.event.ClusterDescriptionChangedEvent;
import com.mongodb.event.ClusterListener;
import com.mongodb.event.CommandFailedEvent;
import com.mongodb.event.CommandListener;
import com.mongodb.event.CommandStartedEvent;
import com.mongodb.event.ConnectionPoolClearedEvent;
import com.mongodb.event.ConnectionPoolListener;
import com.mongodb.event.ServerDescriptionChangedEvent;
import com.mongodb.event.ServerHeartbeatFailedEvent;
import com.mongodb.event.ServerListener;
import com.mongodb.event.ServerMonitorListener;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.bson.BsonDocument;

/** What one client tells about itself. */
final class View implements CommandListener, ConnectionPoolListener, ServerListener, ServerMonitorListener, ClusterListener {
    /** What the driver must make of the address. */
    static final Map<String, Map.Entry<ClusterType, ServerType>> WANTED = Map.of(
            "sharded", Map.entry(ClusterType.SHARDED, ServerType.SHARD_ROUTER),
            "replicaset", Map.entry(ClusterType.REPLICA_SET, ServerType.REPLICA_SET_PRIMARY),
            "loadbalanced", Map.entry(ClusterType.LOAD_BALANCED, ServerType.LOAD_BALANCER));

    /** A command as the driver sent it. */
    record Sent(String name, BsonDocument command) {}

    /** What was sent meanwhile, and the names of the commands that failed. */
    record Recording(List<Sent> sent, List<String> failures) {
        List<BsonDocument> named(String name) {
            return sent.stream().filter(one -> one.name.equals(name)).map(Sent::command).toList();
        }
    }

    private ClusterDescription topology;
    private int poolsCleared;
    private final List<String> serversLost = new ArrayList<>();
    private final List<String> heartbeatsFailed = new ArrayList<>();
    private final Map<String, Integer> started = new HashMap<>();
    private Recording recording;

    void watch(MongoClientSettings.Builder settings) {
        settings.addCommandListener(this)
                .applyToConnectionPoolSettings(b -> b.addConnectionPoolListener(this))
                .applyToServerSettings(b -> b.addServerListener(this).addServerMonitorListener(this))
                .applyToClusterSettings(b -> b.addClusterListener(this));
    }

    @Override
    public synchronized void commandStarted(CommandStartedEvent event) {
        started.merge(event.getCommandName(), 1, Integer::sum);
        if (recording != null) {
            recording.sent.add(new Sent(event.getCommandName(), event.getCommand().clone()));
        }
        notifyAll();
    }

    @Override
    public synchronized void commandFailed(CommandFailedEvent event) {
        if (recording != null) {
            recording.failures.add(event.getCommandName());
        }
    }

    @Override
    public synchronized void connectionPoolCleared(ConnectionPoolClearedEvent event) {
        poolsCleared++;
    }

    @Override
    public synchronized void serverDescriptionChanged(ServerDescriptionChangedEvent event) {
        if (event.getPreviousDescription().isOk() && !event.getNewDescription().isOk()) {
            serversLost.add(String.valueOf(event.getNewDescription().getException()));
        }
    }

    @Override
    public synchronized void serverHeartbeatFailed(ServerHeartbeatFailedEvent event) {
        heartbeatsFailed.add(String.valueOf(event.getThrowable()));
    }

    @Override
    public synchronized void clusterDescriptionChanged(ClusterDescriptionChangedEvent event) {
        topology = event.getNewDescription();
    }

    /** Runs the operation and tells which commands were sent meanwhile. */
    Recording record(Runnable operation) {
        Recording mine = new Recording(new ArrayList<>(), new ArrayList<>());
        synchronized (this) {
            recording = mine;
        }
        try {
            operation.run();
        } finally {
            synchronized (this) {
                recording = null;
            }
        }
        return mine;
    }

    /** How many commands of this name were sent until now. */
    synchronized int count(String command) {
        return started.getOrDefault(command, 0);
    }

    /** Waits until more than {@code before} commands of this name were sent. */
    synchronized void await(String command, int before) throws InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(10);
        while (count(command) <= before) {
            Scenario.holds(System.nanoTime() < deadline, "no " + command + " was sent within 10 s");
            wait(100);
        }
    }

    synchronized void verify(String wanted) {
        Scenario.same(topology.getType(), WANTED.get(wanted).getKey(), "topology type");
        List<ServerType> servers = topology.getServerDescriptions().stream().map(server -> server.getType()).toList();
        Scenario.same(servers, List.of(WANTED.get(wanted).getValue()), "server types");
        verifyCalm();
    }

    synchronized void verifyCalm() {
        verifyKept();
        Scenario.same(heartbeatsFailed, List.of(), "heartbeats failed");
    }

    /** What holds of a closed client, too; its last heartbeat was interrupted by the driver itself. */
    synchronized void verifyKept() {
        Scenario.same(serversLost, List.of(), "servers lost");
        Scenario.same(poolsCleared, 0, "pools cleared");
    }
}
