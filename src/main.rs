//! The `mongomux` program.

fn main() {}
