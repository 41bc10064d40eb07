//! The words that stand for values in the file.

use super::fairness::Level;
use super::file::{AuthKind, QueueKind};
use super::keys::Choice;
use super::tls::{TlsVersion, Wanted};
use super::{FairBy, Presentation, Profile, Retry};

impl Choice for Profile {
    const CHOICES: &'static [(&'static str, Self)] = &{
        let mut choices = [("", Self::Default); Self::ALL.len()];
        let mut index = 0;
        while index < choices.len() {
            choices[index] = (Self::ALL[index].name(), Self::ALL[index]);
            index += 1;
        }
        choices
    };
}

impl Choice for AuthKind {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("users", Self::Users), ("upstream", Self::Upstream)];
}

impl Choice for QueueKind {
    const CHOICES: &'static [(&'static str, Self)] = &[("fifo", Self::Fifo), ("codel", Self::Codel)];
}

impl Choice for Presentation {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("mongos", Self::Mongos),
        ("standalone", Self::Standalone),
        ("replica-set", Self::ReplicaSet),
    ];
}

impl Choice for Retry {
    const CHOICES: &'static [(&'static str, Self)] = &[("driver", Self::Driver), ("proxy", Self::Proxy)];
}

impl Choice for FairBy {
    const CHOICES: &'static [(&'static str, Self)] = &[
        ("none", Self::None),
        ("application", Self::Application),
        ("user", Self::User),
        ("database", Self::Database),
        ("address", Self::Address),
    ];
}

impl Choice for Level {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("high", Self::High), ("normal", Self::Normal), ("low", Self::Low)];
}

impl Choice for Wanted {
    const CHOICES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("optional", Self::Optional), ("required", Self::Required)];
}

impl Choice for TlsVersion {
    const CHOICES: &'static [(&'static str, Self)] = &[("1.2", Self::V1_2), ("1.3", Self::V1_3)];
}
