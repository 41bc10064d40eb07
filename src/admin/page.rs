//! The dashboard: one document without anything from elsewhere, put together from the three files in `page/`. It has no data in
//! it, but the paths that there are; its script asks for `/stats` and the rest as any other caller does, and is let in or not by the same rules.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

const DOCUMENT: &str = include_str!("page/index.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/app.js");

/// What is sent, made once.
struct Page {
    html: String,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
    html: DOCUMENT
        .replace("{{paths}}", &super::PATHS.join(" "))
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT),
    policy: HeaderValue::from_str(&policy()).expect("it is made of visible characters"),
});

/// Our script and our style and nothing else, told by their hashes; it may ask nobody but this port, be shown in no frame (an
/// order could be clicked without being seen), and turn no text into elements.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(SCRIPT),
        hash(STYLE),
    )
}

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

/// `GET /`.
pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, PAGE.policy.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, PAGE.html.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_small_document_without_anything_from_elsewhere() {
        let html = &PAGE.html;
        assert!(html.len() < 60_000, "{} bytes", html.len());
        let (script, style) = (format!("<script>{SCRIPT}</script>"), format!("<style>{STYLE}</style>"));
        assert!(html.contains(&script) && html.contains(&style), "what is hashed is what stands between the tags");
        assert!(!SCRIPT.contains("</script") && !STYLE.contains("</style"));
        let own = html.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http://", "https://", "src=", "@import", "url(", "{{", " onclick=", " style=", "innerHTML"] {
            assert!(!own.contains(foreign), "{foreign}");
        }
    }
}
