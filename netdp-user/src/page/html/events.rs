//! The newest events.

use super::table::{table, text, words};
use super::{Content, counted};
use crate::events::Kind;
use crate::format::local_time;
use crate::monitor::Line;
use maud::{Markup, html};

/// Size of a row besides its cells, and of the section besides its rows, in bytes.
const OF_ROW: usize = 100;
const OF_SECTION: usize = 1_500;

/// Returns the events, the newest first, as far as there is room for them, in bytes.
pub(super) fn newest(content: &Content<'_>, room: usize) -> Markup {
    let events = &content.events;
    let mut room = room.saturating_sub(OF_SECTION);
    let rows = events.iter().map(cells).take_while(|row| {
        let size = OF_ROW + row.iter().map(|cell| cell.0.len()).sum::<usize>();
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    });
    let rows: Vec<_> = rows.collect();
    let counted = counted(rows.len() as u64, "event");
    let of = match rows.len() == events.len() {
        true => String::new(),
        false => format!(" of {}", events.len()),
    };
    html! {
        @if events.is_empty() {
            p class="quiet" { "There were none yet." }
        } @else {
            (table(
                &format!("The newest {counted}{of}, the newest first"),
                [words("Time"), words("Event"), words("What")],
                rows,
            ))
        }
        p class="quiet" {
            "Configurations, findings and what the agent does are always here. Mappings, refusals and drops are \
             here as far as "
            code { "netdp monitor" }
            " has listened to them: nobody else has them reported. "
            (listening(&content.heard))
            " " a href="/api/v1/events" { "All as JSON" }
        }
    }
}

fn listening(heard: &[Kind]) -> String {
    let kinds: Vec<_> = heard.iter().map(|kind| kind.name()).collect();
    match kinds.as_slice() {
        [] => "It is not running now.".to_owned(),
        kinds => format!("It listens now, to {}.", kinds.join(", ")),
    }
}

fn cells(event: &Line) -> [Markup; 3] {
    let words = event.words();
    let words = words.trim_start_matches([' ', ':']);
    [
        text(local_time(event.at() / 1_000_000_000)),
        match event.is_fault() {
            true => html! { span class="bad" { (event.kind().name()) } },
            false => text(event.kind().name()),
        },
        text(words),
    ]
}
