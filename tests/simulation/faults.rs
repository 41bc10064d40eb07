//! What goes wrong beside the clients: servers, the network, the clock, the operator.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mongomux::admission::Mode;
use mongomux::upstream::orders::Cleanup;
use tokio::time::{Instant, sleep};

use crate::network::Far;
use crate::world::World;

/// Faults of a run, at most.
const MOST: usize = 25;

pub(crate) async fn run(world: Arc<World>) {
    let chance = &world.chance;
    let set = &world.set;
    let servers = set.members.len();
    let count = chance.below(MOST);
    for _ in 0..count {
        let pause = chance.pick(&[20, 200, 2_000, 8_000]);
        sleep(chance.ms(1..pause)).await;
        let victim = chance.below(servers);
        match chance.range(0..20) {
            0..4 => {
                if let Some(primary) = set.primary() {
                    set.step_down(primary);
                }
                elect_later(&world, chance.ms(0..3_000));
            }
            4..7 => {
                if set.members[victim].state().up {
                    set.kill(victim);
                    let down = chance.ms(50..10_000);
                    let of_set = set.clone();
                    set.tasks.spawn("start a server", async move {
                        sleep(down).await;
                        of_set.start(victim);
                    });
                    elect_later(&world, chance.ms(500..8_000));
                }
            }
            7..9 => {
                let time = chance.pick(&[300, 3_000, 30_000]);
                set.freeze(victim, chance.ms(1..time));
                elect_later(&world, chance.ms(5_000..12_000));
            }
            9..11 => {
                set.truth.note(format_args!("links to server {victim} break"));
                set.network.reset(Far::Server(victim), chance.pick(&[30, 100]));
            }
            11 => {
                let time = chance.ms(10..12_000);
                set.truth.note(format_args!("nothing reaches server {victim} for {} ms", time.as_millis()));
                set.members[victim].state().unreachable_until = Instant::now() + time;
                set.network.stall(Far::Server(victim), 100, time);
            }
            12 => {
                let time = chance.ms(10..3_000);
                set.truth.note(format_args!("some links to server {victim} stand still for {} ms", time.as_millis()));
                set.network.stall(Far::Server(victim), 40, time);
            }
            13..15 => {
                let client = chance.below(world.plan.clients);
                set.truth.note(format_args!("the link of client {client} breaks"));
                set.network.reset(Far::Client(client), 100);
            }
            15 => {
                let jump = chance.ms(100..20_000);
                set.truth.note(format_args!("{} ms go by at once", jump.as_millis()));
                set.truth.facts().jumped += jump;
                tokio::time::advance(jump).await;
            }
            16 => {
                set.truth.note(format_args!("the operator pauses"));
                let timeout = chance.ms(10..2_000);
                if world.cluster.pause(None, Some(timeout)).is_ok() && chance.percent(60) {
                    sleep(chance.ms(1..1_000)).await;
                    world.cluster.resume(None);
                }
            }
            17 => {
                set.truth.note(format_args!("the operator reconnects"));
                for server in world.cluster.servers() {
                    server.pool.reconnect();
                }
            }
            18 => {
                let mode = chance.pick(&[Cleanup::Idle, Cleanup::Soft, Cleanup::Hard]);
                set.truth.note(format_args!("the operator cleans up: {mode:?}"));
                for server in world.cluster.servers() {
                    server.pool.clean_up(mode);
                }
            }
            _ => {
                set.truth.note(format_args!("the operator trips the breaker of server {victim}"));
                if let Some(server) = world.cluster.server(&set.members[victim].address) {
                    server.trip();
                    sleep(chance.ms(1..1_000)).await;
                    server.health.reset();
                }
            }
        }
    }
}

fn elect_later(world: &Arc<World>, pause: Duration) {
    let of_world = world.clone();
    world.set.tasks.spawn("elect", async move {
        sleep(pause).await;
        of_world.set.elect();
    });
}

/// Ends all faults and waits until there is a primary.
pub(crate) async fn heal(world: &World) {
    world.truth().note(format_args!("all is well from now on"));
    world.set.mangled_percent.store(0, Ordering::Relaxed);
    world.cluster.resume(None);
    world.cluster.switch_mode(Mode::Normal);
    // What is under way still comes.
    sleep(Duration::from_secs(35)).await;
    let now = Instant::now();
    for (number, member) in world.set.members.iter().enumerate() {
        {
            let mut state = member.state();
            state.frozen_until = now;
            state.unreachable_until = now;
        }
        if !member.state().up {
            world.set.start(number);
        }
    }
    world.set.network.heal();
    world.set.elect();
    debug_assert!(world.calm.load(Ordering::Relaxed));
}
