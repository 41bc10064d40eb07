//! Draws the model: what is asked for first stands at the top, and what a small terminal has no room for is left out.

use ratatui::Frame as Screen;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Sparkline};

use super::model::{Model, View};
use super::moment::{Frame, Rates};
use crate::operate::events;
use crate::operate::page::{Line as Words, Piece, Tone};
use crate::operate::stats::headline;

/// Lines of a chart, its frame included.
const CHART: u16 = 5;

/// Lines for what has happened last, their title included.
const EVENTS: u16 = 6;

/// Colours, or none of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub(super) colour: bool,
}

impl Paint {
    fn style(self, tone: Tone) -> Style {
        let plain = Style::default();
        match tone {
            Tone::Plain => plain,
            Tone::Faint => plain.add_modifier(Modifier::DIM),
            Tone::Title => plain.add_modifier(Modifier::BOLD),
            Tone::Good if self.colour => plain.fg(Color::Green),
            Tone::Warn if self.colour => plain.fg(Color::Yellow),
            Tone::Bad if self.colour => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Good => plain,
            Tone::Warn => plain.add_modifier(Modifier::UNDERLINED),
            Tone::Bad => plain.add_modifier(Modifier::REVERSED),
        }
    }

    fn line(self, words: Words) -> Line<'static> {
        Line::from_iter(words.into_iter().map(|Piece { text, tone }| Span::styled(text, self.style(tone))))
    }
}

/// Draws all of it.
pub(super) fn draw(screen: &mut Screen<'_>, model: &Model, address: &str, paint: Paint) {
    let area = screen.area();
    // The table has the last word about the room: without its titles and a few rows there is nothing to see.
    let happened = model.frame.as_ref().map(|frame| events::lines(frame.events.as_ref(), usize::from(EVENTS - 1)));
    let happened = happened.unwrap_or_default();
    let chart = if area.height >= 18 { CHART } else { 0 };
    let events = if area.height >= 26 && !happened.is_empty() { EVENTS } else { 0 };
    let rows = [
        Constraint::Length(3),
        Constraint::Length(chart),
        Constraint::Min(2),
        Constraint::Length(events),
        Constraint::Length(1),
    ];
    let [head, charts, table, below, foot] = area.layout(&Layout::vertical(rows));
    screen.render_widget(Paragraph::new(heading(model, address, paint)), head);
    if chart > 0 {
        draw_charts(screen, model, charts, paint);
    }
    draw_table(screen, model, table, paint);
    if events > 0 {
        let mut lines = vec![paint.line(vec![Piece::new("EVENTS", Tone::Faint)])];
        lines.extend(happened.into_iter().map(|line| paint.line(line)));
        screen.render_widget(Paragraph::new(lines), below);
    }
    let keys = "q quit   1 clusters  2 servers  3 applications  Tab next   ←→ sort  r reverse   ↑↓ scroll";
    screen.render_widget(Paragraph::new(paint.line(vec![Piece::new(keys, Tone::Faint)])), foot);
}

fn heading(model: &Model, address: &str, paint: Paint) -> Vec<Line<'static>> {
    let mut first = vec![Piece::new(format!("{address}  "), Tone::Faint)];
    match &model.frame {
        Some(frame) => {
            first.extend(headline(&frame.stats));
            first.push(Piece::new(format!("  {}", frame.time), Tone::Faint));
        }
        None => first.push(Piece::plain("asking …")),
    }
    let views = View::ALL.into_iter().flat_map(|view| {
        let tone = if view == model.view { Tone::Title } else { Tone::Faint };
        let name = if view == model.view { format!("[{}]", view.name()) } else { format!(" {} ", view.name()) };
        [Piece::new(name, tone), Piece::plain(" ")]
    });
    let second = match &model.trouble {
        Some(trouble) => vec![Piece::new(trouble, Tone::Bad)],
        None => model.frame.as_ref().map(|frame| rates(&frame.rates)).unwrap_or_default(),
    };
    vec![paint.line(first), paint.line(second), paint.line(views.collect())]
}

fn rates(rates: &Rates) -> Words {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    let warn = |value: f64| if value > 0.0 { Tone::Warn } else { Tone::Plain };
    vec![
        Piece::new(format!("{:.0} commands/s", rates.commands_per_second), Tone::Title),
        Piece::plain(format!("  p50 {} ms  p99 {} ms", ms(rates.p50_ms), ms(rates.p99_ms))),
        Piece::plain(format!("  servers p99 {} ms  wait p99 {} ms", ms(rates.upstream_p99_ms), ms(rates.wait_p99_ms))),
        Piece::new(format!("  failed {:.1}/s", rates.failed_per_second), warn(rates.failed_per_second)),
        Piece::new(format!("  refused {:.1}/s", rates.refused_per_second), warn(rates.refused_per_second)),
        Piece::plain(format!("  connects {:.1}/s", rates.connects_per_second)),
    ]
}

fn draw_charts(screen: &mut Screen<'_>, model: &Model, area: Rect, paint: Paint) {
    let [left, right] = area.layout(&Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]));
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit behind the point")]
    let ms = |us: u64| us as f64 / 1_000.0;
    let most = |series: &std::collections::VecDeque<u64>, width: u16| {
        series.iter().take(width.into()).copied().max().unwrap_or_default()
    };
    let (queue, p99) = (most(&model.queue, left.width), most(&model.p99, right.width));
    chart(screen, left, &format!("waiting, at most {queue}"), &model.queue, paint.style(Tone::Warn));
    chart(screen, right, &format!("p99 of commands, at most {:.1} ms", ms(p99)), &model.p99, paint.style(Tone::Good));
}

/// The newest at the right, where eyes look for it.
fn chart(
    screen: &mut Screen<'_>,
    area: Rect,
    title: &str,
    newest_first: &std::collections::VecDeque<u64>,
    style: Style,
) {
    let block = Block::default().borders(Borders::TOP).title(title.to_owned());
    let room = usize::from(area.width);
    let mut shown: Vec<u64> = newest_first.iter().take(room).copied().collect();
    shown.resize(room, 0);
    shown.reverse();
    // An underlined or inverted bar would be none.
    let style = Style { add_modifier: Modifier::empty(), ..style };
    screen.render_widget(Sparkline::default().block(block).data(shown).style(style), area);
}

fn draw_table(screen: &mut Screen<'_>, model: &Model, area: Rect, paint: Paint) {
    let mut lines = model.table().lines(Some(area.width.into()));
    if lines.len() > 1 {
        lines.drain(1..=model.scrolled.min(lines.len() - 1));
    }
    let mut lines: Vec<Line<'static>> = lines.into_iter().map(|line| paint.line(line)).collect();
    lines.extend(model.frame.iter().flat_map(advices).map(|line| paint.line(line)));
    screen.render_widget(Paragraph::new(lines), area);
}

/// What is wrong, and what to do.
fn advices(frame: &Frame) -> Vec<Words> {
    let mut lines = Vec::new();
    for cluster in &frame.stats.clusters {
        lines.extend(cluster.problem.iter().map(|it| vec![Piece::new(format!("! {}: {it}", cluster.name), Tone::Bad)]));
        for server in &cluster.servers {
            let wrong = server.breaker_reason.iter().chain(&server.error);
            lines.extend(wrong.map(|it| vec![Piece::new(format!("! {}: {it}", server.address), Tone::Bad)]));
            let advices = server.recommendations.iter();
            lines.extend(advices.map(|it| vec![Piece::new(format!("* {}: {it}", server.address), Tone::Warn)]));
        }
        lines.extend(
            cluster.recommendations.iter().map(|it| vec![Piece::new(format!("* {}: {it}", cluster.name), Tone::Warn)]),
        );
    }
    if !lines.is_empty() {
        lines.insert(0, Words::new());
    }
    lines
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;
    use crate::admin::stats::Stats;
    use crate::operate::series::Scrape;
    use crate::operate::top::model::tests::shown;
    use crate::operate::top::moment::Moment;

    fn drawn(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|screen| draw(screen, model, "127.0.0.1:9627", Paint { colour: true })).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn a_large_terminal_shows_all_of_it() {
        let mut model = shown();
        model.frame.as_mut().unwrap().events = Some(json!([{"kind": "reconnected", "server": "db1:1"}]));
        let lines = drawn(&model, 130, 30);
        assert!(lines[0].starts_with("127.0.0.1:9627  mongomux 0.1.0  up 3h 12m  clients 1999"), "{lines:#?}");
        assert!(lines[1].starts_with("100 commands/s  p50 1.0 ms  p99 "), "{lines:#?}");
        assert!(lines[2].contains("[servers]"));
        assert!(
            lines[3].contains("waiting, at most 34") && lines[3].contains("p99 of commands, at most"),
            "{lines:#?}"
        );
        assert!(lines[7].contains('█'), "a full bar at the foot of the chart: {lines:#?}");
        let has = |text: &str| lines.iter().any(|line| line.contains(text));
        assert!(has("db1.example:27017  primary") && has("* db1.example:27017: raise max_pool_size"), "{lines:#?}");
        assert!(has("EVENTS") && has("reconnected") && lines[29].starts_with("q quit"), "{lines:#?}");
    }

    #[test]
    fn numbers_that_make_no_sense_are_no_panic() {
        let mut model = shown();
        let mut frame = model.frame.clone().unwrap();
        let mut cluster = frame.stats.clusters[0].clone();
        (cluster.clients, cluster.wait_queue.length, cluster.wait_queue.oldest_ms) = (usize::MAX, usize::MAX, u64::MAX);
        for tenant in cluster.servers.iter_mut().flat_map(|server| &mut server.tenants) {
            (tenant.active, tenant.waiting, tenant.served) = (u32::MAX, usize::MAX, u64::MAX);
            (tenant.wait_p99_ms, tenant.held_ms) = (f64::NAN, f64::INFINITY);
        }
        frame.stats.clusters = vec![cluster.clone(), cluster];
        frame.stats.uptime_seconds = u64::MAX;
        let moment = |stats: &Stats, scrape: &str| Moment {
            at: tokio::time::Instant::now(),
            stats: stats.clone(),
            scrape: Scrape::parse(scrape),
            events: Some(json!([{"kind": {}, "count": -1}, 5])),
        };
        let page = "mongomux_commands_total 1e308\nmongomux_commands_total{a=\"\"} 1e308\n\
                    mongomux_command_seconds_bucket{le=\"1e308\"} 1e308\nmongomux_command_seconds_bucket{le=\"+Inf\"} NaN\n";
        let (before, after) = (moment(&model.frame.as_ref().unwrap().stats, ""), moment(&frame.stats, page));
        model.take(Ok(Frame::between(&before, &after, String::new())));
        for view in View::ALL {
            (model.view, model.sort) = (view, None);
            for column in 0..model.table().columns.len() {
                model.sort = Some((column, true));
                drawn(&model, 200, 40);
            }
        }
        let look = crate::operate::Look { width: Some(80), colour: true };
        crate::operate::stats::page(&after.stats, look);
    }

    #[test]
    fn a_small_terminal_shows_the_table() {
        let lines = drawn(&shown(), 60, 10);
        assert!(lines[3].starts_with("SERVER") && lines[4].starts_with("db1.example"), "{lines:#?}");
        for (width, height) in [(1, 1), (5, 3), (20, 18), (300, 100)] {
            drawn(&shown(), width, height);
            drawn(&Model::default(), width, height);
        }
    }

    #[test]
    fn trouble_is_said_at_the_top_and_scrolled_rows_are_above() {
        let mut model = shown();
        model.take(Err("nothing listens at 127.0.0.1:9627".to_owned()));
        model.scrolled = 1;
        let lines = drawn(&model, 100, 12);
        assert!(lines[1].starts_with("nothing listens"), "{lines:#?}");
        assert!(lines[4].starts_with("db2.example"), "{lines:#?}");
    }
}
