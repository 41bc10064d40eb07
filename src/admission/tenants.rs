//! The tenants of one cluster: by name, each with a number and what it may have.

use foldhash::{HashMap, HashMapExt as _};

use super::claim::Tenant;
use crate::config::FairnessConfig;
use crate::config::limits::MAX_TENANTS;

/// Tenants that have been seen. Those beyond [`MAX_TENANTS`] share one share with those without a name.
#[derive(Debug)]
pub struct Tenants {
    config: FairnessConfig,
    ids: HashMap<Box<str>, u16>,
    all: Vec<Known>,
    /// One without a name was seen.
    nameless: bool,
}

#[derive(Debug)]
struct Known {
    name: Box<str>,
    tenant: Tenant,
    max_waiting: usize,
}

impl Known {
    fn new(id: u16, name: &str, config: &FairnessConfig) -> Self {
        let bounds = config.bounds_of(name);
        let (weight, max_in_flight) = (bounds.weight.unwrap_or(1), bounds.max_in_flight.unwrap_or(u16::MAX));
        let tenant = Tenant { id, weight, max_in_flight };
        Self { name: name.into(), tenant, max_waiting: bounds.max_waiting.unwrap_or(usize::MAX) }
    }
}

impl Tenants {
    /// Only the one without a name.
    pub fn new(config: FairnessConfig) -> Self {
        let mut tenants = Self { config, ids: HashMap::new(), all: Vec::new(), nameless: false };
        tenants.add("");
        tenants
    }

    /// The tenant of that name.
    pub fn of(&mut self, name: &str) -> Tenant {
        if name.is_empty() {
            self.nameless = true;
            return self.all[0].tenant;
        }
        match self.ids.get(name) {
            Some(id) => self.all[usize::from(*id)].tenant,
            None if self.all.len() < MAX_TENANTS => self.add(name),
            None => {
                self.nameless = true;
                self.all[0].tenant
            }
        }
    }

    /// Gives every tenant what another configuration gives it. Those who wait do so as they began.
    pub fn reconfigure(&mut self, config: FairnessConfig) {
        self.config = config;
        for known in &mut self.all {
            *known = Known::new(known.tenant.id, &known.name, &self.config);
        }
    }

    fn add(&mut self, name: &str) -> Tenant {
        let id = u16::try_from(self.all.len()).expect("there are at most MAX_TENANTS");
        let known = Known::new(id, name, &self.config);
        let tenant = known.tenant;
        self.ids.insert(name.into(), id);
        self.all.push(known);
        tenant
    }

    /// Waiting commands that a tenant may have.
    pub fn max_waiting(&self, id: u16) -> usize {
        self.all.get(usize::from(id)).map_or(usize::MAX, |known| known.max_waiting)
    }

    /// How many have been seen.
    pub fn count(&self) -> usize {
        (self.all.len() - usize::from(!self.nameless)).max(1)
    }

    /// Name and weight of a tenant.
    pub fn name(&self, id: u16) -> (&str, u16) {
        self.all.get(usize::from(id)).map_or(("", 1), |known| (&*known.name, known.tenant.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FairBy;
    use crate::config::fairness::{TenantBounds, TenantRule};

    fn tenants() -> Tenants {
        let bounds = TenantBounds { weight: Some(4), max_in_flight: Some(2), max_waiting: Some(9) };
        let rule = TenantRule { name: "batch*".parse().unwrap(), bounds };
        let all = TenantBounds { max_waiting: Some(100), ..TenantBounds::default() };
        Tenants::new(FairnessConfig { by: FairBy::Application, all, tenants: vec![rule], priorities: Vec::new() })
    }

    #[test]
    fn a_tenant_keeps_its_number_and_has_what_the_rules_give_it() {
        let mut tenants = tenants();
        let (web, batch) = (tenants.of("web"), tenants.of("batch-7"));
        assert_eq!(web, Tenant { id: 1, ..Tenant::COMMON });
        assert_eq!(batch, Tenant { id: 2, weight: 4, max_in_flight: 2 });
        assert_eq!(tenants.count(), 2);
        assert_eq!((tenants.of("web"), tenants.of("")), (web, Tenant::COMMON));
        assert_eq!([0, 1, 2].map(|id| tenants.max_waiting(id)), [100, 100, 9]);
        assert_eq!([0, 1, 2].map(|id| tenants.name(id)), [("", 1), ("web", 1), ("batch-7", 4)]);
        assert_eq!(tenants.count(), 3);
    }

    #[test]
    fn other_rules_are_for_all_who_are_known_and_leave_them_their_numbers() {
        let mut tenants = tenants();
        let batch = tenants.of("batch-7");
        let all = TenantBounds { weight: Some(3), ..TenantBounds::default() };
        let config = FairnessConfig { by: FairBy::Application, all, tenants: Vec::new(), priorities: Vec::new() };
        tenants.reconfigure(config);
        assert_eq!(tenants.of("batch-7"), Tenant { weight: 3, max_in_flight: u16::MAX, ..batch });
        assert_eq!([0, 1, 2].map(|id| tenants.max_waiting(id)), [usize::MAX; 3]);
        assert_eq!((tenants.name(1), tenants.name(2)), (("batch-7", 3), ("", 1)));
        assert_eq!(tenants.count(), 1);
    }

    #[test]
    fn there_is_no_end_of_names_and_an_end_of_tenants() {
        let mut tenants = tenants();
        for number in 0..2 * MAX_TENANTS {
            tenants.of(&format!("tenant {number}"));
        }
        assert_eq!(tenants.count(), MAX_TENANTS);
        assert_eq!(tenants.of("one more").id, 0);
        assert_ne!(tenants.of("tenant 7").id, 0);
    }
}
