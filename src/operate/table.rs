//! Tables that fit: columns as wide as what is in them, and where a line would be too long the least important ones are left out.
//! No I/O here.

use unicode_width::UnicodeWidthStr as _;

use super::page::{Line, Piece, Tone};

/// Between two columns.
const GAP: usize = 2;

/// A column that must not be left out.
pub(super) const KEEP: u8 = u8::MAX;

/// The first column is not cut to less than this.
const LEAST_NAME: usize = 12;

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// What is above it.
    pub(super) title: String,
    /// Numbers stand at the right.
    pub(super) right: bool,
    /// Where there is no room the lowest go first.
    pub(super) rank: u8,
}

impl Column {
    /// Of words.
    pub(super) fn words(title: impl Into<String>, rank: u8) -> Self {
        Self { title: title.into(), right: false, rank }
    }

    /// Of numbers.
    pub(super) fn numbers(title: impl Into<String>, rank: u8) -> Self {
        Self { title: title.into(), right: true, rank }
    }
}

/// Rows of as many pieces as there are columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// From the left.
    pub(super) columns: Vec<Column>,
    /// From the top.
    pub(super) rows: Vec<Vec<Piece>>,
}

impl Table {
    /// The lines of it, titles first, none of them longer than `width` where that can be.
    pub(super) fn lines(&self, width: Option<usize>) -> Vec<Line> {
        let wide = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.text.width());
            cells.chain([self.columns[index].title.width()]).max().unwrap_or_default()
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(wide).collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let taken = |shown: &[usize], widths: &[usize]| {
            shown.iter().map(|&index| widths[index] + GAP).sum::<usize>().saturating_sub(GAP)
        };
        let room = width.unwrap_or(usize::MAX);
        while taken(&shown, &widths) > room {
            let least = shown.iter().copied().filter(|&index| self.columns[index].rank < KEEP);
            let Some(least) = least.min_by_key(|&index| (self.columns[index].rank, std::cmp::Reverse(index))) else {
                break;
            };
            shown.retain(|&index| index != least);
        }
        if let Some(&first) = shown.first() {
            let over = taken(&shown, &widths).saturating_sub(room);
            widths[first] = widths[first].saturating_sub(over).max(LEAST_NAME.min(widths[first]));
        }
        let line = |cell: &dyn Fn(usize) -> Piece| {
            let mut line = Line::new();
            for (place, &index) in shown.iter().enumerate() {
                let Piece { text, tone } = cell(index);
                let text = cut(&text, widths[index]);
                let blank = " ".repeat(widths[index] - text.width());
                let last = place + 1 == shown.len();
                let text = match (self.columns[index].right, last) {
                    (true, _) => format!("{blank}{text}"),
                    (false, true) => text,
                    (false, false) => format!("{text}{blank}"),
                };
                line.push(Piece { text, tone });
                if !last {
                    line.push(Piece::plain(" ".repeat(GAP)));
                }
            }
            line
        };
        let title = |index: usize| Piece::new(&self.columns[index].title, Tone::Faint);
        let rows = self.rows.iter().map(|row| line(&|index| row.get(index).cloned().unwrap_or_default()));
        std::iter::once(line(&title)).chain(rows).collect()
    }
}

/// The end tells servers of one domain less apart than the beginning does.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        let mut next = kept.clone();
        next.push(character);
        if next.width() >= width {
            break;
        }
        kept = next;
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::page::Page;

    fn text(table: &Table, width: Option<usize>) -> String {
        Page { lines: table.lines(width) }.render(false)
    }

    fn table() -> Table {
        let row = |cells: [&str; 4]| cells.map(Piece::plain).to_vec();
        Table {
            columns: vec![
                Column::words("SERVER", KEEP),
                Column::words("ROLE", 2),
                Column::numbers("ACTIVE", KEEP),
                Column::numbers("CLOSING", 1),
            ],
            rows: vec![row(["db1.example.net:27017", "primary", "9", "0"]), row(["größe", "mongos", "10", "3"])],
        }
    }

    #[test]
    fn columns_line_up_numbers_at_the_right() {
        let expected = "SERVER                 ROLE     ACTIVE  CLOSING\n\
                        db1.example.net:27017  primary       9        0\n\
                        größe                  mongos       10        3";
        assert_eq!(text(&table(), None), expected);
        assert_eq!(text(&table(), Some(47)), expected);
    }

    #[test]
    fn what_matters_least_goes_first_and_names_are_cut_last() {
        let expected = "SERVER                 ROLE     ACTIVE\n\
                        db1.example.net:27017  primary       9\n\
                        größe                  mongos       10";
        assert_eq!(text(&table(), Some(46)), expected);
        let expected = "SERVER            ACTIVE\ndb1.example.net…       9\ngröße                 10";
        assert_eq!(text(&table(), Some(24)), expected);
        assert!(
            text(&table(), Some(1)).lines().all(|line| line.chars().count() == LEAST_NAME + 8),
            "no width is a panic"
        );
        assert_eq!(text(&Table::default(), Some(5)), "");
    }
}
