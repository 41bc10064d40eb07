//! Watches the members for the proxy, as the driver's monitors do: each on its own, streaming, with the rules of SDAM for which
//! primary is believed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bson::RawDocumentBuf;
use mongomux::config::Address;
use mongomux::topology::description::Hello;
use mongomux::topology::{Monitor, News, ServerDescription, ServerKind, TopologyDescription, TopologyKind};
use tokio::time::{Instant, sleep, timeout};

use crate::set::Set;

const HEARTBEAT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HURRY: Duration = Duration::from_millis(500);

pub(crate) struct Watch {
    set: Arc<Set>,
    monitor: Monitor,
    view: Mutex<View>,
}

struct View {
    servers: BTreeMap<Address, ServerDescription>,
    term: i64,
}

impl Watch {
    pub(crate) fn start(set: &Arc<Set>, monitor: Monitor) {
        let unknown = |address: &Address| (address.clone(), ServerDescription::unknown(address.clone()));
        let servers = set.members.iter().map(|member| unknown(&member.address)).collect();
        let watch = Arc::new(Self { set: set.clone(), monitor, view: Mutex::new(View { servers, term: 0 }) });
        watch.publish();
        for number in 0..set.members.len() {
            let watch = watch.clone();
            set.tasks.spawn("watch a server", async move { watch.follow(number).await });
        }
    }

    async fn follow(&self, number: usize) {
        let member = &self.set.members[number];
        let mut version = member.version.subscribe();
        loop {
            version.borrow_and_update();
            let answered = match timeout(CONNECT_TIMEOUT, self.ask(number)).await {
                Ok(Some((hello, term))) => {
                    self.answered(&member.address, hello, term);
                    true
                }
                Ok(None) => {
                    self.lost(number, false);
                    false
                }
                Err(_) => {
                    self.lost(number, true);
                    false
                }
            };
            let pause = if answered { HEARTBEAT } else { HURRY };
            // An early look does no harm.
            drop(timeout(pause, version.changed()).await);
            sleep(self.set.network.latency()).await;
        }
    }

    async fn ask(&self, number: usize) -> Option<(Hello, i64)> {
        sleep(self.set.network.latency()).await;
        let member = &self.set.members[number];
        let unreachable = member.state().unreachable_until;
        if unreachable > Instant::now() {
            sleep(Duration::from_secs(3_600)).await;
        }
        if !member.state().up {
            return None;
        }
        member.thaw().await;
        if !member.state().up {
            return None;
        }
        let reply = RawDocumentBuf::try_from(&self.set.hello(number)).expect("a document");
        let answer = (Hello::read(&reply), member.state().term);
        sleep(self.set.network.latency()).await;
        Some(answer)
    }

    fn answered(&self, address: &Address, hello: Hello, term: i64) {
        {
            let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            let believed = hello.kind != ServerKind::RsPrimary || term >= view.term;
            if hello.kind == ServerKind::RsPrimary && believed {
                view.term = term;
                for other in view.servers.values_mut().filter(|other| other.kind == ServerKind::RsPrimary) {
                    *other = ServerDescription::unknown(other.address.clone());
                }
            }
            let mut server = ServerDescription::unknown(address.clone());
            if believed {
                server.kind = hello.kind;
                server.set_name = hello.set_name.clone();
                server.max_wire_version = 17;
                server.logical_session_timeout_minutes = Some(30);
                server.round_trip_time = Some(Duration::from_millis(1));
            } else {
                server.error = Some("a primary of before".to_owned());
            }
            view.servers.insert(address.clone(), server);
        }
        self.monitor.learn(News::Answered(address.clone(), hello));
        self.publish();
    }

    fn lost(&self, number: usize, timed_out: bool) {
        let address = &self.set.members[number].address;
        {
            let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            let mut server = ServerDescription::unknown(address.clone());
            server.error = Some("lost".to_owned());
            view.servers.insert(address.clone(), server);
        }
        let was_known = self.monitor.current().servers.get(address).is_some_and(ServerDescription::is_known);
        if was_known {
            self.set.members[number].state().lost = Some(Instant::now());
        }
        self.monitor.learn(News::Lost { address: address.clone(), timed_out });
        self.publish();
    }

    fn publish(&self) {
        let servers = self.view.lock().unwrap_or_else(PoisonError::into_inner).servers.clone();
        let has_primary = servers.values().any(|server| server.kind == ServerKind::RsPrimary);
        let kind = if has_primary { TopologyKind::ReplicaSetWithPrimary } else { TopologyKind::ReplicaSetNoPrimary };
        let set_name = Some("rs".to_owned());
        self.monitor.learn(News::Described(TopologyDescription { kind, set_name, servers, ..Default::default() }));
    }
}
