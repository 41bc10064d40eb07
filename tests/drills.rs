//! Failure drills: some forty clients work through the proxy while something goes wrong with a replica set of three, and a
//! ledger tells whether anything acknowledged was lost, anything ran twice, anything was answered wrongly.
//!
//! Nothing here claims how long something takes: times from an election to the first acknowledged write are printed, and
//! measured by `benches/failover.rs`. The troubles of `at_random` follow from a seed, which is printed; `MONGOMUX_DRILL_SEED`
//! sets it.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]
#![allow(clippy::print_stdout, reason = "what a drill took, for whoever asks with --nocapture")]

mod support;

use bson::{Bson, Document, doc};
use futures_util::future::{join, try_join_all};
use mongomux::sandbox::deployment::Deployment;
use mongomux::sandbox::mongod::Mongod;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::counts::Bound;
use support::elections::{Elected, Elections};
use support::hold::eventually;
use support::ledger::{self, Ledger, Load};
use support::proxy::{Proxy, proxy};
use tokio::time::{Duration, Instant, sleep};

/// Elections take one or two seconds here, and several times that on a busy machine: waiting them out is the point.
const SETTINGS: &str = "server_selection_timeout_ms = 30_000\nwait_queue_timeout_ms = 30_000";

/// A point between a write and its acknowledgement.
const HOLD_REPLIES: &str = "hangBeforeWaitingForWriteConcern";

/// Acknowledged writes before, between and after troubles.
const SOME: usize = 150;

/// What a drill has to do with.
struct Scene<'a> {
    name: &'a str,
    deployment: Deployment,
    proxy: &'a Proxy,
    ledger: &'a Ledger,
    elections: Elections,
}

/// What may be wrong with writes after a drill, beside nothing.
struct Allowed {
    /// Retryable work fails.
    errors: bool,
    /// Writes that nobody sends again and whose outcome is unknown, per such socket.
    unknown: usize,
}

/// Lets the clients work while `trouble` happens, and audits them.
async fn drill(name: &str, allowed: Allowed, trouble: impl AsyncFnOnce(&mut Scene<'_>)) {
    let deployment = support::replica_set(3).await;
    let proxy = proxy(&deployment.uri(), SETTINGS).await;
    let mut bounds = Vec::new();
    for member in deployment.members() {
        bounds.push(Bound::watch(member).await);
    }
    let elections = Elections::watch(deployment.members().iter().map(Mongod::address));
    let load = Load::default();
    let mut deployment = Some(deployment);
    let books = ledger::keep(proxy.address(), &load, async |ledger| {
        let deployment_there = deployment.take().unwrap();
        let mut scene = Scene { name, deployment: deployment_there, proxy: &proxy, ledger, elections };
        ledger.progress(SOME).await;
        tokio::select! {
            () = trouble(&mut scene) => {}
            () = proxy.hold_the_bound() => {}
        }
        ledger.progress(SOME).await;
        scene.deployment.await_members().await.unwrap();
        deployment = Some(scene.deployment);
    })
    .await;
    let deployment = deployment.unwrap();
    let wrong = books.audit(&deployment.uri()).await;
    assert!(wrong.is_empty(), "{name}: {wrong:#?}");
    let (retryable, plain) = books.unknown();
    let (errors, acknowledged) = (&books.notes.errors, books.notes.acknowledged.len());
    println!("{name}: {acknowledged} acknowledged, unknown: {retryable} retryable, {plain} plain; errors: {errors:#?}");
    if !allowed.errors {
        assert!(errors.is_empty(), "{name}: retryable work failed: {errors:#?}");
        assert_eq!((retryable, books.refused()), (0, 0), "{name}");
    }
    assert!(plain <= allowed.unknown * load.plain, "{name}: {plain} writes with an unknown outcome");
    for bound in &bounds {
        assert!(bound.samples() > 20 && bound.most() <= 10, "{name}: {} in {} samples", bound.most(), bound.samples());
    }
    for reason in ["idle", "stalled", "handshake_timeout", "protocol_error", "drain", "proxy"] {
        assert_eq!(proxy.clients_closed(reason), 0.0, "{name}: clients were closed for {reason}");
    }
    proxy.settles().await;
}

impl Scene<'_> {
    /// Whoever is primary steps down.
    async fn step_down(&self) {
        let step_down = doc! { "replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 5, "force": true };
        // The next one may be elected between the look and the command.
        eventually("a primary steps down", async || {
            let primary = self.deployment.await_primary().await.unwrap();
            let mut admin = support::client(&self.deployment.members()[primary]).await;
            admin.command("admin", step_down.clone()).await.is_ok()
        })
        .await;
    }

    /// Lets the primary write, and its secondaries copy, without a reply, until all connections of the proxy are held: what
    /// is sent again without a `txnNumber` after that is written twice.
    async fn holds_replies(&self, primary: usize) {
        let members = self.deployment.members();
        support::fail_point(&members[primary], HOLD_REPLIES, Bson::from("alwaysOn"), doc! {}).await;
        let pools = || self.proxy.pools();
        eventually("all replies are held", async || {
            pools().iter().any(|pool| pool.counts.in_use == pool.max_pool_size)
        })
        .await;
        eventually("the others have it", async || {
            let mut written = Vec::new();
            for member in members {
                let hello = support::client(member).await.command("admin", doc! { "hello": 1 }).await.unwrap();
                written.push(hello.get_document("lastWrite").unwrap().get("opTime").cloned());
            }
            written.windows(2).all(|two| two[0] == two[1])
        })
        .await;
    }

    /// Waits for another primary than the one before `trouble`.
    async fn elects(&mut self, trouble: impl AsyncFnOnce(&mut Self)) -> Elected {
        let before = self.elections.current().await;
        trouble(self).await;
        self.elections.next(&before).await
    }

    /// Waits until the proxy serves again, and tells how long that took.
    async fn serves(&self, elected: &Elected) {
        let ((read, written), direct) = join(self.ledger.first_after(elected.at), elected.first_direct_write()).await;
        let name = self.name;
        println!(
            "{name}: after the election, first read {read:?}, first write {written:?}, without a proxy {direct:?}"
        );
    }

    /// Installs the configuration of the set as `change` leaves it.
    async fn reconfigure(&self, change: impl FnOnce(&mut Document)) {
        let primary = self.deployment.await_primary().await.unwrap();
        let mut admin = support::client(&self.deployment.members()[primary]).await;
        let reply = admin.command("admin", doc! { "replSetGetConfig": 1 }).await.unwrap();
        let mut config = reply.get_document("config").unwrap().clone();
        let version = config.get_i32("version").unwrap();
        config.insert("version", version + 1);
        change(&mut config);
        admin.command("admin", doc! { "replSetReconfig": config }).await.unwrap();
    }
}

#[tokio::test]
async fn a_primary_steps_down_twice() {
    drill("step-down", Allowed { errors: false, unknown: 2 }, async |scene| {
        for _ in 0..2 {
            let elected = scene.elects(async |scene| scene.step_down().await).await;
            scene.serves(&elected).await;
            scene.ledger.progress(SOME).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_primary_is_killed_and_comes_back() {
    drill("kill", Allowed { errors: false, unknown: 1 }, async |scene| {
        let primary = scene.deployment.await_primary().await.unwrap();
        scene.holds_replies(primary).await;
        let elected = scene.elects(async |scene| scene.deployment.member(primary).kill().await.unwrap()).await;
        scene.serves(&elected).await;
        scene.ledger.progress(SOME).await;
        scene.deployment.member(primary).restart().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_primary_hangs_and_comes_back() {
    drill("pause", Allowed { errors: false, unknown: 1 }, async |scene| {
        let primary = scene.deployment.await_primary().await.unwrap();
        let paused = Instant::now();
        let elected = scene.elects(async |scene| scene.deployment.members()[primary].pause().await.unwrap()).await;
        tokio::time::sleep_until(paused + Duration::from_secs(5)).await;
        scene.deployment.members()[primary].resume().unwrap();
        scene.serves(&elected).await;
    })
    .await;
}

#[tokio::test]
async fn all_members_are_killed_and_come_back() {
    drill("outage", Allowed { errors: false, unknown: 1 }, async |scene| {
        let everybody = Load::default().sockets();
        let elected = scene
            .elects(async |scene| {
                // Whoever meets one death sends again, once, and must not meet another then: the others die when nothing is
                // on its way to them, since everybody waits for a primary and none can be elected.
                let primary = scene.deployment.await_primary().await.unwrap();
                for secondary in [(primary + 1) % 3, (primary + 2) % 3] {
                    let mut admin = support::client(&scene.deployment.members()[secondary]).await;
                    admin.command("admin", doc! { "replSetFreeze": 600 }).await.unwrap();
                }
                scene.deployment.member(primary).kill().await.unwrap();
                eventually("everybody waits", async || scene.proxy.waiting() == everybody).await;
                let others = scene.deployment.members_mut().enumerate().filter(|(index, _)| *index != primary);
                try_join_all(others.map(|(_, member)| member.kill())).await.unwrap();
                try_join_all(scene.deployment.members_mut().map(Mongod::restart)).await.unwrap();
            })
            .await;
        scene.serves(&elected).await;
    })
    .await;
}

#[tokio::test]
async fn a_member_is_removed_and_added_again() {
    drill("reconfiguration", Allowed { errors: false, unknown: 0 }, async |scene| {
        let primary = scene.deployment.await_primary().await.unwrap();
        let secondary = scene.deployment.members()[(primary + 1) % 3].address();
        let is_there = async |there: bool| {
            let servers = || scene.proxy.clusters()[0].servers();
            eventually("the proxy follows", async || servers().iter().any(|it| *it.address == secondary) == there)
                .await;
        };
        let mut removed = None;
        scene
            .reconfigure(|config| {
                let members = config.get_array_mut("members").unwrap();
                let host = secondary.to_string();
                let index = members.iter().position(|it| it.as_document().unwrap().get_str("host").unwrap() == host);
                removed = Some(members.remove(index.unwrap()));
            })
            .await;
        is_there(false).await;
        scene.ledger.progress(SOME).await;
        scene.reconfigure(|config| config.get_array_mut("members").unwrap().push(removed.unwrap())).await;
        is_there(true).await;
    })
    .await;
}

/// One of the troubles of `at_random`.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    StepDown,
    /// Member, and how long it is away.
    Kill(usize, Duration),
    /// Member, and how long it hangs.
    Pause(usize, Duration),
    /// Member, and how many connections of the proxy it closes when a command arrives there.
    Cut(usize, i32),
}

impl Trouble {
    fn any(random: &mut SmallRng) -> Self {
        let member = random.random_range(0..3);
        let time = Duration::from_millis(random.random_range(100..3_000));
        match random.random_range(0..4) {
            0 => Self::StepDown,
            1 => Self::Kill(member, time),
            2 => Self::Pause(member, time),
            _ => Self::Cut(member, random.random_range(1..8)),
        }
    }

    async fn happens(self, scene: &mut Scene<'_>) {
        match self {
            Self::StepDown => scene.step_down().await,
            Self::Kill(member, time) => {
                scene.deployment.member(member).kill().await.unwrap();
                sleep(time).await;
                scene.deployment.member(member).restart().await.unwrap();
            }
            Self::Pause(member, time) => {
                scene.deployment.members()[member].pause().await.unwrap();
                sleep(time).await;
                scene.deployment.members()[member].resume().unwrap();
            }
            Self::Cut(member, times) => {
                let commands = ["insert", "update", "find"];
                let cut = doc! { "failCommands": &commands[..], "closeConnection": true, "appName": "mongomux" };
                support::fail_command(&scene.deployment.members()[member], times, cut).await;
            }
        }
    }
}

#[tokio::test]
async fn at_random() {
    let seed = std::env::var("MONGOMUX_DRILL_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("MONGOMUX_DRILL_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    drill("random", Allowed { errors: true, unknown: usize::MAX / 100 }, async |scene| {
        let end = Instant::now() + Duration::from_secs(15);
        while Instant::now() < end {
            let trouble = Trouble::any(&mut random);
            println!("random: {trouble:?}");
            trouble.happens(scene).await;
            sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        }
    })
    .await;
}
