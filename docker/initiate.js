// Makes mongo1, mongo2 and mongo3 the replica set rs0, unless they are one, and waits for its primary. For mongosh, connected to
// one of them directly.
const members = ["mongo1", "mongo2", "mongo3"].map((name, id) => ({ _id: id, host: `${name}:27017` }));
try {
    rs.status();
} catch (error) {
    if (error.codeName !== "NotYetInitialized") throw error;
    rs.initiate({ _id: "rs0", members });
}
for (let second = 0; !db.hello().primary; second++) {
    if (second === 60) throw new Error("no primary within a minute");
    sleep(1000);
}
print(`the primary is ${db.hello().primary}`);
