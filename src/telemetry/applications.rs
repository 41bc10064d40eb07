//! Which applications the clients are of, by the name that each tells in its first hello. Each name is kept once and has a
//! small number, which is cheap to carry along with whatever its client holds.
//!
//! Names are what clients say: they are shown to operators, and never become labels of metrics.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::limits::MAX_APPLICATIONS;

/// The number of an application, as long as one of its clients is there, or something that one of them holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApplicationId(u16);

/// Before the names: the proxy itself, clients that tell no name, and those whose names are too many.
const WITHOUT_NAME: u16 = 3;

impl ApplicationId {
    /// The proxy: commands of its own.
    pub const OWN: Self = Self(0);
    /// Clients that tell no name.
    pub const UNNAMED: Self = Self(1);
    /// Clients whose names came when there were [`MAX_APPLICATIONS`] others.
    pub const OTHERS: Self = Self(2);
    /// All numbers are less than this.
    pub const COUNT: usize = MAX_APPLICATIONS + WITHOUT_NAME as usize;

    /// As a place in a table of [`Self::COUNT`].
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// The one of that place.
    pub fn from_index(index: usize) -> Option<Self> {
        u16::try_from(index).ok().filter(|_| index < Self::COUNT).map(Self)
    }
}

const _: () = assert!(ApplicationId::COUNT <= u16::MAX as usize);

/// An application, held by its clients and by what they have open: its number is given to no other meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application(Arc<Known>);

#[derive(Debug, PartialEq, Eq)]
struct Known {
    id: ApplicationId,
    name: Option<Box<str>>,
}

impl Application {
    fn new(id: ApplicationId, name: Option<Box<str>>) -> Self {
        Self(Arc::new(Known { id, name }))
    }

    /// Its number.
    pub fn id(&self) -> ApplicationId {
        self.0.id
    }

    /// Its name; `None` where none was told, or none was kept.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }
}

/// All of them.
#[derive(Debug)]
pub struct Applications {
    unnamed: Application,
    others: Application,
    named: Mutex<Vec<Application>>,
}

impl Default for Applications {
    fn default() -> Self {
        let without_name = |id| Application::new(id, None);
        let (unnamed, others) = (without_name(ApplicationId::UNNAMED), without_name(ApplicationId::OTHERS));
        Self { unnamed, others, named: Mutex::default() }
    }
}

impl Applications {
    /// That of a client which has told no name.
    pub fn unnamed(&self) -> Application {
        self.unnamed.clone()
    }

    /// The one of that name. Where all places are taken, one that nobody holds makes room.
    pub fn named(&self, name: &str) -> Application {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = named.iter().find(|known| known.name() == Some(name)) {
            return known.clone();
        }
        let free = if named.len() < MAX_APPLICATIONS {
            Some(named.len())
        } else {
            named.iter().position(|known| Arc::strong_count(&known.0) == 1)
        };
        let Some(place) = free else { return self.others.clone() };
        let id = ApplicationId::from_index(place + usize::from(WITHOUT_NAME)).expect("within the bound");
        let application = Application::new(id, Some(name.into()));
        if place == named.len() {
            named.push(application.clone());
        } else {
            named[place] = application.clone();
        }
        application
    }

    /// The name behind a number; `None` where there is none.
    pub fn name(&self, id: ApplicationId) -> Option<Box<str>> {
        let place = id.index().checked_sub(usize::from(WITHOUT_NAME))?;
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.get(place)?.name().map(Box::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_one_number_and_a_number_its_name() {
        let all = Applications::default();
        let (shop, search) = (all.named("shop"), all.named("search"));
        assert_eq!(all.named("shop"), shop);
        assert_ne!(shop.id(), search.id());
        assert_eq!(all.name(shop.id()).as_deref(), Some("shop"));
        assert_eq!(all.name(search.id()).as_deref(), Some("search"));
        for id in [ApplicationId::OWN, all.unnamed().id(), ApplicationId::OTHERS] {
            assert_eq!(all.name(id), None, "{id:?}");
        }
        assert_eq!(ApplicationId::from_index(shop.id().index()), Some(shop.id()));
        assert_eq!(ApplicationId::from_index(ApplicationId::COUNT), None);
    }

    #[test]
    fn names_are_bounded_and_a_number_in_use_is_given_to_nobody_else() {
        let all = Applications::default();
        let mut held: Vec<_> = (0..MAX_APPLICATIONS).map(|number| all.named(&number.to_string())).collect();
        assert_eq!(all.named("one more").id(), ApplicationId::OTHERS);
        assert_eq!(all.named("one more").name(), None);
        let left = held.swap_remove(7);
        let (id, still_held) = (left.id(), left.clone());
        drop(left);
        assert_eq!(all.named("one more").id(), ApplicationId::OTHERS, "something of a client that left is open");
        drop(still_held);
        assert_eq!(all.named("one more").id(), id);
        assert_eq!(all.name(id).as_deref(), Some("one more"));
        assert_eq!(all.named("3").name(), Some("3"), "who is known stays");
    }
}
