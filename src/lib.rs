//! mongomux: PgBouncer for MongoDB.
//!
//! The modules are the stages of a command, in the order it passes them; a stage imports the stages before it, never
//! those after it (`tests/architecture.rs` checks this):
//!
//! `wire → auth → command → topology → breaker → routing → admission → upstream → reply → client → admin → operate →
//! app → sandbox → trial`
//!
//! `cli`, `config`, `reload`, `telemetry`, `tasks` and `tls` are leaves that any stage may use.

pub mod cli;
pub mod config;
pub mod reload;
pub mod tasks;
pub mod telemetry;
pub mod tls;

pub mod wire;

pub mod auth;

pub mod command;

pub mod topology;

pub mod breaker;

pub mod routing;

pub mod admission;

pub mod upstream;

pub mod reply;

pub mod client;

pub mod admin;

pub mod operate;

pub mod app;

pub mod sandbox;

pub mod trial;
