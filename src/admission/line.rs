//! Who waits in one line: values by the number of their place, in which almost all join at the end and go from the front.
//!
//! A sorted deque instead of a tree: joining and going cost a few instructions, and no allocation. Who leaves from the middle
//! leaves a gap, which goes with those before it, or when gaps are most of what there is.

use std::collections::VecDeque;
use std::ops::Range;

/// So many gaps are not worth tidying up.
const FEW: usize = 32;

/// Room for more than this is given back once nobody waits.
const ROOMY: usize = 1_024;

/// Values by place. The first and the last entry are never gaps.
#[derive(Debug)]
pub struct Line<V> {
    places: VecDeque<(u64, Option<V>)>,
    len: usize,
}

impl<V> Default for Line<V> {
    fn default() -> Self {
        Self { places: VecDeque::new(), len: 0 }
    }
}

impl<V> Line<V> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a place, which nobody else has.
    pub fn insert(&mut self, place: u64, value: V) {
        self.len += 1;
        if self.places.back().is_none_or(|(last, _)| *last < place) {
            return self.places.push_back((place, Some(value)));
        }
        match self.find(place) {
            Ok(index) => {
                debug_assert!(self.places[index].1.is_none(), "no place is used twice");
                self.places[index].1 = Some(value);
            }
            Err(index) => self.places.insert(index, (place, Some(value))),
        }
    }

    /// Who has that place.
    pub fn get_mut(&mut self, place: u64) -> Option<&mut V> {
        let index = self.find(place).ok()?;
        self.places[index].1.as_mut()
    }

    /// Leaves.
    pub fn remove(&mut self, place: u64) -> Option<V> {
        let index = if self.first_place() == Some(place) { 0 } else { self.find(place).ok()? };
        let value = self.places[index].1.take()?;
        self.len -= 1;
        self.tidy();
        Some(value)
    }

    /// The first one.
    pub fn first(&self) -> Option<(u64, &V)> {
        self.places.front().and_then(|(place, value)| Some((*place, value.as_ref()?)))
    }

    /// The last one.
    pub fn last(&self) -> Option<(u64, &V)> {
        self.places.back().and_then(|(place, value)| Some((*place, value.as_ref()?)))
    }

    /// Takes the first one out.
    pub fn pop_first(&mut self) -> Option<(u64, V)> {
        let place = self.first_place()?;
        Some((place, self.remove(place)?))
    }

    /// Those whose places are in `range`, in their order.
    pub fn between(&self, range: Range<u64>) -> impl Iterator<Item = &V> {
        let [from, to] = [range.start, range.end].map(|end| self.places.partition_point(|(place, _)| *place < end));
        self.places.range(from..to.max(from)).filter_map(|(_, value)| value.as_ref())
    }

    /// Everybody, in their order.
    pub fn into_values(self) -> impl Iterator<Item = V> {
        self.places.into_iter().filter_map(|(_, value)| value)
    }

    fn first_place(&self) -> Option<u64> {
        self.places.front().map(|(place, _)| *place)
    }

    fn find(&self, place: u64) -> Result<usize, usize> {
        self.places.binary_search_by_key(&place, |(place, _)| *place)
    }

    fn tidy(&mut self) {
        while self.places.front().is_some_and(|(_, value)| value.is_none()) {
            self.places.pop_front();
        }
        while self.places.back().is_some_and(|(_, value)| value.is_none()) {
            self.places.pop_back();
        }
        if self.places.len() > 2 * self.len + FEW {
            self.places.retain(|(_, value)| value.is_some());
        }
        if self.len == 0 && self.places.capacity() > ROOMY {
            self.places = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_room_of_a_crowd_is_given_back() {
        let capacity_after = |places: VecDeque<_>, crowd| {
            let mut line = Line { places, len: 0 };
            (0..crowd).for_each(|place| line.insert(place, ()));
            while line.pop_first().is_some() {}
            line.places.capacity()
        };
        assert_eq!(capacity_after(VecDeque::new(), 5_000), 0);
        assert_eq!(capacity_after(VecDeque::with_capacity(ROOMY), 10), ROOMY, "that much is used again");
    }

    #[test]
    fn gaps_are_left_until_they_are_most_of_it() {
        let left_with = |places| {
            let mut line = Line::default();
            (0..places).for_each(|place| line.insert(place, ()));
            (9..places - 1).for_each(|place| assert!(line.remove(place).is_some()));
            line.places.len()
        };
        assert_eq!([52, 53].map(left_with), [52, 10], "ten that wait, as many gaps, and a few");
    }

    proptest! {
        /// Against a tree.
        #[test]
        fn behaves_like_a_map(operations in prop::collection::vec((0_u8..8, 0_usize..64), 1..400)) {
            let (mut line, mut model, mut gone, mut next) = (Line::default(), BTreeMap::new(), Vec::new(), 0);
            for (operation, index) in operations {
                match operation {
                    0..=2 => {
                        line.insert(next, next);
                        model.insert(next, next);
                        next += 1;
                    }
                    3 if !gone.is_empty() => {
                        // Comes back to its old place.
                        let place = gone.swap_remove(index % gone.len());
                        line.insert(place, place);
                        model.insert(place, place);
                    }
                    4 => {
                        let popped = model.pop_first();
                        gone.extend(popped.map(|(place, _)| place));
                        prop_assert_eq!(line.pop_first(), popped);
                    }
                    5 | 6 if !model.is_empty() => {
                        let place = *model.keys().nth(index % model.len()).unwrap();
                        prop_assert_eq!(line.get_mut(place).copied(), Some(place));
                        prop_assert_eq!(line.remove(place), model.remove(&place));
                        prop_assert_eq!(line.remove(place), None);
                        prop_assert_eq!(line.get_mut(place), None);
                        gone.push(place);
                    }
                    7 if index == 0 => {
                        let (line, model) = (std::mem::take(&mut line), std::mem::take(&mut model));
                        prop_assert!(line.into_values().eq(model.into_values()));
                    }
                    _ => {}
                }
                let half = next / 2;
                prop_assert!(line.between(half..next).eq(model.range(half..next).map(|(_, value)| value)));
                prop_assert!(line.between(0..half).eq(model.range(0..half).map(|(_, value)| value)));
                prop_assert_eq!(line.first(), model.first_key_value().map(|(place, value)| (*place, value)));
                prop_assert_eq!(line.last(), model.last_key_value().map(|(place, value)| (*place, value)));
                prop_assert_eq!((line.len(), line.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(line.places.len() <= 2 * line.len() + FEW);
            }
        }
    }
}
