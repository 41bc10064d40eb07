//! Text with a meaning for each piece of it, which shows as a colour where there are any. No I/O here.

/// What a piece of text means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing more than it says.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Something is wrong.
    Bad,
    /// Beside the point.
    Faint,
    /// What the lines below are about.
    Title,
}

impl Tone {
    /// Of a share in use, in percent.
    pub fn of_utilization(percent: u32) -> Self {
        match percent {
            0..80 => Self::Plain,
            80..100 => Self::Warn,
            _ => Self::Bad,
        }
    }

    fn ansi(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Warn => Some("33"),
            Self::Bad => Some("1;31"),
            Self::Faint => Some("2"),
            Self::Title => Some("1"),
        }
    }
}

/// A terminal does something else with it than to show it: controls, marks of direction, and what is invisible.
fn is_obeyed(c: char) -> bool {
    let is_mark = matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    c.is_control() || is_mark
}

/// What somebody else has said, in words of any length.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if is_obeyed(c) && c != '\n' { '·' } else { c }).collect()
}

/// JSON that a terminal only shows: what it would obey stands in texts alone, where it can be escaped.
pub fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) && c != '\n' {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A piece of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// Without anything that a terminal would obey.
    pub text: String,
    /// What it means.
    pub tone: Tone,
}

impl Piece {
    /// Names come from clients and servers: what would move a cursor, or turn what follows around, is shown as a dot.
    pub fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: text.as_ref().chars().map(|c| if is_obeyed(c) { '·' } else { c }).collect(), tone }
    }

    /// Nothing more than it says.
    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// One line.
pub type Line = Vec<Piece>;

/// Lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// From the top.
    pub lines: Vec<Line>,
}

impl Page {
    /// Adds a line of one piece.
    pub fn line(&mut self, text: impl AsRef<str>, tone: Tone) {
        self.lines.push(vec![Piece::new(text, tone)]);
    }

    /// Adds a line that only parts.
    pub fn gap(&mut self) {
        self.lines.push(Line::new());
    }

    /// Adds a text behind a mark, in lines of at most `width` columns of which the further ones are indented as far.
    pub fn item(&mut self, mark: &str, text: &str, tone: Tone, width: Option<usize>) {
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(mark.chars().count())).max(20);
        let mut line = String::new();
        let mut lead = mark.to_owned();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                self.line(format!("{lead}{line}"), tone);
                lead = " ".repeat(mark.chars().count());
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(format!("{lead}{line}"), tone);
    }

    /// All of it, with a line end behind each line but the last.
    pub fn render(&self, colour: bool) -> String {
        let lines = self.lines.iter().map(|line| {
            let pieces = line.iter().map(|Piece { text, tone }| match tone.ansi() {
                Some(code) if colour && !text.trim().is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
                _ => text.clone(),
            });
            pieces.collect::<String>().trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_show_where_they_are_wanted_and_names_move_no_cursor() {
        let mut page = Page::default();
        page.lines.push(vec![
            Piece::new("up", Tone::Good),
            Piece::plain(" and "),
            Piece::new("\x1b[2J\u{9b}2J\n", Tone::Bad),
        ]);
        assert_eq!(Piece::plain("a\u{202e}b\u{200b}c\u{2028}ä€").text, "a·b·c·ä€");
        assert_eq!(harmless("one\ntwo\x1b[2J"), "one\ntwo·[2J");
        let value = serde_json::json!({"name": "\u{9b}2J\u{7f}\u{202e}\x1b\"ä"});
        let shown = json(&format!("{value:#}"));
        assert_eq!(shown, "{\n  \"name\": \"\\u009b2J\\u007f\\u202e\\u001b\\\"ä\"\n}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert_eq!(page.render(false), "up and ·[2J·2J·");
        assert_eq!(page.render(true), "\x1b[32mup\x1b[0m and \x1b[1;31m·[2J·2J·\x1b[0m");
    }

    #[test]
    fn long_texts_are_broken_between_words_and_indented() {
        let mut page = Page::default();
        page.item("  * ", "one two three four five six seven", Tone::Plain, Some(25));
        page.item("  * ", "averyveryverylongwordthatfitsnowhere", Tone::Plain, Some(10));
        page.item("  * ", "one two three four five six seven", Tone::Plain, None);
        let expected = "  * one two three four\n    five six seven\n  * averyveryverylongwordthatfitsnowhere\n  * one two three four five six seven";
        assert_eq!(page.render(false), expected);
    }
}
