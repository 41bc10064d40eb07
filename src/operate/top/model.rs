//! What `top` shows, and what keys do to it. No I/O here.

use std::cmp::Ordering;
use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::moment::Frame;
use crate::operate::page::{Piece, Tone};
use crate::operate::stats::{
    pin_cells, pin_columns, pool_cells, pool_columns, server_columns, server_row, status, waiting,
};
use crate::operate::table::{Column, KEEP, Table};

/// Intervals that the charts can go back; wider than terminals are.
const REMEMBERED: usize = 512;

/// What the rows are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum View {
    Clusters,
    #[default]
    Servers,
    Applications,
}

impl View {
    pub(super) const ALL: [Self; 3] = [Self::Clusters, Self::Servers, Self::Applications];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Clusters => "clusters",
            Self::Servers => "servers",
            Self::Applications => "applications",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Clusters => Self::Servers,
            Self::Servers => Self::Applications,
            Self::Applications => Self::Clusters,
        }
    }
}

/// All that is shown.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The last one that could be had.
    pub(super) frame: Option<Frame>,
    /// Why there is none that is newer.
    pub(super) trouble: Option<String>,
    pub(super) view: View,
    /// The column that rows are sorted by, and whether the largest are last; as they come without one.
    pub(super) sort: Option<(usize, bool)>,
    /// Rows above the first that is shown.
    pub(super) scrolled: usize,
    /// Who waited, newest first.
    pub(super) queue: VecDeque<u64>,
    /// The 99th percentile of commands, microseconds, newest first.
    pub(super) p99: VecDeque<u64>,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Quit,
}

impl Model {
    /// Shows what came, or why nothing did.
    pub(super) fn take(&mut self, frame: Result<Frame, String>) {
        match frame {
            Ok(frame) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a time in microseconds, which a chart shows in eighths of a line"
                )]
                let p99 = (frame.rates.p99_ms.unwrap_or_default() * 1_000.0) as u64;
                self.p99.push_front(p99);
                self.queue.push_front(frame.rates.queue as u64);
                self.p99.truncate(REMEMBERED);
                self.queue.truncate(REMEMBERED);
                (self.frame, self.trouble) = (Some(frame), None);
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Does what a key means.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Go;
        }
        let columns = self.table().columns.len();
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            // The terminal makes no signals of them while it is drawn on.
            KeyCode::Char('c' | 'd' | '\\') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::Quit,
            KeyCode::Char('1' | 'c') => self.show(View::Clusters),
            KeyCode::Char('2' | 's') => self.show(View::Servers),
            KeyCode::Char('3' | 'a') => self.show(View::Applications),
            KeyCode::Tab => self.show(self.view.next()),
            KeyCode::Right | KeyCode::Char('>') => self.sort_by(|at| (at + 1) % columns),
            KeyCode::Left | KeyCode::Char('<') => self.sort_by(|at| (at + columns - 1) % columns),
            KeyCode::Char('r') => self.sort = self.sort.map(|(column, rising)| (column, !rising)),
            KeyCode::Down | KeyCode::Char('j') => self.scrolled += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::Home | KeyCode::Char('g') => self.scrolled = 0,
            _ => {}
        }
        self.scrolled = self.scrolled.min(self.table().rows.len().saturating_sub(1));
        Next::Go
    }

    fn show(&mut self, view: View) {
        if self.view != view {
            (self.view, self.sort, self.scrolled) = (view, None, 0);
        }
    }

    /// Words begin with a, numbers with the largest.
    fn sort_by(&mut self, column: impl Fn(usize) -> usize) {
        let column = self.sort.map_or(0, |(at, _)| column(at));
        let words = self.table().columns.get(column).is_some_and(|column| !column.right);
        self.sort = Some((column, words));
    }

    /// The rows of the view, sorted, with a mark above the column that they are sorted by.
    pub(super) fn table(&self) -> Table {
        let (columns, mut rows) = match self.view {
            View::Clusters => (cluster_columns(), self.clusters()),
            View::Servers => (server_columns(), self.servers()),
            View::Applications => (application_columns(), self.applications()),
        };
        let mut columns = columns;
        if let Some((column, rising)) = self.sort {
            rows.sort_by(|(_, a), (_, b)| {
                let order = a[column].order(&b[column]);
                if rising { order } else { order.reverse() }
            });
            columns[column].title.push(if rising { '▲' } else { '▼' });
            columns[column].rank = KEEP;
        }
        Table { columns, rows: rows.into_iter().map(|(cells, _)| cells).collect() }
    }

    fn clusters(&self) -> Vec<Row> {
        let clusters = self.frame.iter().flat_map(|frame| &frame.stats.clusters);
        let rows = clusters.map(|it| {
            let mut cells = vec![
                Piece::plain(&it.name),
                Piece::new(&it.mode, if it.mode == "normal" { Tone::Plain } else { Tone::Warn }),
                status(it.status),
            ];
            cells.extend(pool_cells(&it.connections, &it.wait_queue));
            cells.push(Piece::plain(it.clients.to_string()));
            cells.extend(pin_cells(&it.pins));
            let keys = keys_of(&cells, &[(9, it.wait_queue.oldest_ms)]);
            (cells, keys)
        });
        rows.collect()
    }

    fn servers(&self) -> Vec<Row> {
        let servers = self.frame.iter().flat_map(|frame| &frame.stats.clusters).flat_map(|cluster| &cluster.servers);
        let rows = servers.map(|it| {
            let cells = server_row(it);
            let keys = keys_of(&cells, &[(9, it.wait_queue.oldest_ms)]);
            (cells, keys)
        });
        rows.collect()
    }

    fn applications(&self) -> Vec<Row> {
        let applications = self.frame.iter().flat_map(|frame| &frame.applications);
        let rows = applications.map(|it| {
            let name = match it.name.as_str() {
                "" => Piece::new("(says none)", Tone::Faint),
                name => Piece::plain(name),
            };
            let number = |value: f64| Piece::plain(format!("{value:.1}"));
            let cells = vec![
                name,
                Piece::plain(format!("{:.0}", it.commands_per_second)),
                Piece::plain(it.active.to_string()),
                waiting(it.waiting),
                number(it.wait_p99_ms),
                number(it.held_ms),
            ];
            let keys = keys_of(&cells, &[]);
            (cells, keys)
        });
        rows.collect()
    }
}

fn cluster_columns() -> Vec<Column> {
    let mut columns = vec![Column::words("CLUSTER", KEEP), Column::words("MODE", 60), Column::words("STATUS", KEEP)];
    columns.extend(pool_columns());
    columns.push(Column::numbers("CLIENTS", 75));
    columns.extend(pin_columns());
    columns
}

fn application_columns() -> Vec<Column> {
    vec![
        Column::words("APPLICATION", KEEP),
        Column::numbers("COMMANDS/S", KEEP),
        Column::numbers("ACTIVE", KEEP),
        Column::numbers("WAITING", KEEP),
        Column::numbers("WAIT P99 MS", 50),
        Column::numbers("HELD MS", 40),
    ]
}

/// What is shown, and what it is sorted by.
type Row = (Vec<Piece>, Vec<Key>);

/// What a cell is sorted by.
#[derive(Debug, Clone, PartialEq)]
enum Key {
    Number(f64),
    Words(String),
}

impl Key {
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.total_cmp(b),
            (Self::Words(a), Self::Words(b)) => a.cmp(b),
            (Self::Number(_), Self::Words(_)) => Ordering::Less,
            (Self::Words(_), Self::Number(_)) => Ordering::Greater,
        }
    }
}

/// Numbers as they are written, and others as they are given, by their column.
fn keys_of(cells: &[Piece], given: &[(usize, u64)]) -> Vec<Key> {
    let key = |(column, cell): (usize, &Piece)| {
        #[expect(clippy::cast_precision_loss, reason = "times that are close are as good as equal")]
        let given = given.iter().find(|(at, _)| *at == column).map(|(_, value)| *value as f64);
        let number = given.or_else(|| cell.text.trim_end_matches('%').parse().ok());
        number.map_or_else(|| Key::Words(cell.text.clone()), Key::Number)
    };
    cells.iter().enumerate().map(key).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operate::top::moment::tests::moments;

    pub(crate) fn shown() -> Model {
        let (before, after) = moments(1);
        let mut model = Model::default();
        model.take(Ok(Frame::between(&before, &after, "2026-01-01T00:00:00Z".to_owned())));
        model
    }

    fn press(model: &mut Model, keys: &[KeyCode]) -> Next {
        keys.iter().map(|code| model.key(KeyEvent::from(*code))).last().unwrap()
    }

    fn first_column(model: &Model) -> Vec<String> {
        model.table().rows.iter().map(|row| row[0].text.clone()).collect()
    }

    #[test]
    fn keys_choose_the_view_and_leave() {
        let mut model = shown();
        assert_eq!(first_column(&model), ["db1.example:27017", "db2.example:27017"]);
        press(&mut model, &[KeyCode::Char('1')]);
        assert_eq!(first_column(&model), ["default"]);
        press(&mut model, &[KeyCode::Char('a')]);
        assert_eq!(first_column(&model), ["shop", "(says none)"]);
        press(&mut model, &[KeyCode::Tab]);
        assert_eq!(model.view, View::Clusters);
        assert_eq!(press(&mut model, &[KeyCode::Char('x')]), Next::Go);
        assert_eq!(press(&mut model, &[KeyCode::Char('q')]), Next::Quit);
        let stop = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(model.key(stop), Next::Quit);
    }

    #[test]
    fn rows_are_sorted_by_any_column_and_back() {
        let mut model = shown();
        press(&mut model, &[KeyCode::Right]);
        assert_eq!((model.sort, model.table().columns[0].title.as_str()), (Some((0, true)), "SERVER▲"));
        press(&mut model, &[KeyCode::Char('r')]);
        assert_eq!(first_column(&model), ["db2.example:27017", "db1.example:27017"]);
        press(&mut model, &[KeyCode::Right, KeyCode::Right, KeyCode::Right]);
        assert_eq!(model.sort, Some((3, false)), "numbers begin with the largest");
        assert_eq!(first_column(&model), ["db1.example:27017", "db2.example:27017"]);
        press(&mut model, &[KeyCode::Char('r')]);
        assert_eq!(first_column(&model), ["db2.example:27017", "db1.example:27017"]);
        press(&mut model, &[KeyCode::Left, KeyCode::Left, KeyCode::Left, KeyCode::Left]);
        assert_eq!(model.sort, Some((13, true)), "around the end");
        press(&mut model, &[KeyCode::Char('3')]);
        assert_eq!(model.sort, None, "another view, other columns");
    }

    #[test]
    fn waits_are_sorted_by_their_length_and_not_by_their_letters() {
        let mut model = shown();
        let frame = model.frame.as_mut().unwrap();
        frame.stats.clusters[0].servers[0].wait_queue.oldest_ms = 900;
        frame.stats.clusters[0].servers[1].wait_queue.oldest_ms = 5_000;
        model.sort = Some((9, false));
        assert_eq!(first_column(&model), ["db2.example:27017", "db1.example:27017"]);
    }

    #[test]
    fn trouble_shows_beside_the_last_that_could_be_had() {
        let mut model = shown();
        model.take(Err("nothing listens".to_owned()));
        assert!(model.frame.is_some() && model.trouble.is_some());
        for _ in 0..2 * REMEMBERED {
            let frame = model.frame.clone().unwrap();
            model.take(Ok(frame));
        }
        assert_eq!((model.queue.len(), model.p99.len(), model.trouble.as_deref()), (REMEMBERED, REMEMBERED, None));
    }

    #[test]
    fn there_is_always_a_row_to_see() {
        let mut model = shown();
        press(&mut model, &[KeyCode::Down; 20]);
        assert_eq!(model.scrolled, 1);
        press(&mut model, &[KeyCode::Up; 20]);
        assert_eq!(model.scrolled, 0);
        let mut empty = Model::default();
        assert_eq!(press(&mut empty, &[KeyCode::Down, KeyCode::Right, KeyCode::Left, KeyCode::Char('r')]), Next::Go);
    }
}
