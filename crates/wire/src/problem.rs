//! Refusals and failures as they cross the wire: problem details for HTTP (RFC 9457).
//!
//! A problem says what the caller may know: a stable code, a sentence, whether trying again can help. It
//! never carries the text of an inner error, a path of this machine, or anything about other callers.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// The media type of a problem (RFC 9457, section 6.1).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Longest text of a problem, in characters; what is longer is cut.
const TEXT_CHARS_MAX: usize = 500;

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Reason code in snake case, the same in the log.
    pub code: String,
    /// What kind of problem, in words.
    pub title: String,
    /// This one, in words.
    pub detail: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

impl Problem {
    /// A problem of any status.
    #[must_use]
    pub fn new(status: u16, code: &str, detail: &str) -> Self {
        let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        Self {
            status,
            code: tame(code),
            title: title.unwrap_or("Problem").to_owned(),
            detail: tame(detail),
            retryable: false,
        }
    }

    /// 400: the request cannot be understood.
    #[must_use]
    pub fn bad_request(code: &str, detail: &str) -> Self {
        Self::new(400, code, detail)
    }

    /// 401: the caller is not, or no longer, who it must be.
    #[must_use]
    pub fn unauthorized(code: &str, detail: &str) -> Self {
        Self::new(401, code, detail)
    }

    /// 403: the caller may not do this.
    #[must_use]
    pub fn forbidden(code: &str, detail: &str) -> Self {
        Self::new(403, code, detail)
    }

    /// 404: there is nothing there.
    #[must_use]
    pub fn not_found(code: &str, detail: &str) -> Self {
        Self::new(404, code, detail)
    }

    /// 409: what is there contradicts the request.
    #[must_use]
    pub fn conflict(code: &str, detail: &str) -> Self {
        Self::new(409, code, detail)
    }

    /// 413: the request is too large.
    #[must_use]
    pub fn too_large(code: &str, detail: &str) -> Self {
        Self::new(413, code, detail)
    }

    /// 422: understood, but it breaks a rule.
    #[must_use]
    pub fn unprocessable(code: &str, detail: &str) -> Self {
        Self::new(422, code, detail)
    }

    /// 429: too much at once; may be retried.
    #[must_use]
    pub fn too_many(code: &str, detail: &str) -> Self {
        Self::new(429, code, detail).retryable_if(true)
    }

    /// 503: not now; may be retried.
    #[must_use]
    pub fn unavailable(code: &str, detail: &str) -> Self {
        Self::new(503, code, detail).retryable_if(true)
    }

    /// 500: our fault. Says nothing more, because the caller could do nothing with it; the log has the cause.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(500, "internal", "something went wrong here; the log of this process says what")
    }

    /// The same problem with its word on retrying set.
    #[must_use]
    pub fn retryable_if(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// Reads a problem from a reply. A body that is none becomes a problem of the reply's status: whoever
    /// answered so was not one of our handlers, and what it wrote is not repeated.
    #[must_use]
    pub fn parse(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Self>(body) {
            Ok(problem) => Self {
                status,
                code: tame(&problem.code),
                title: tame(&problem.title),
                detail: tame(&problem.detail),
                retryable: problem.retryable,
            },
            Err(_) => Self::new(status, &format!("http_{status}"), "the reply does not say more")
                .retryable_if(matches!(status, 429 | 502 | 503 | 504)),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        response
    }
}

/// Text from elsewhere, without control characters and not too long, so that it can stand in a log or
/// terminal.
fn tame(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_wire() {
        let problem = Problem::unavailable("journal_failed", "not now");
        let body = serde_json::to_vec(&problem).unwrap();
        assert_eq!(Problem::parse(503, &body), problem);
        assert_eq!(problem.clone().into_response().status(), 503);
        assert_eq!(problem.to_string(), "journal_failed: not now");
    }

    #[test]
    fn the_status_of_the_reply_counts_not_the_one_in_its_body() {
        let body = serde_json::to_vec(&Problem::bad_request("a", "b")).unwrap();
        assert_eq!(Problem::parse(403, &body).status, 403);
    }

    #[test]
    fn foreign_text_is_tamed() {
        let problem = Problem::forbidden("x", &format!("\u{1b}[31m{}", "a".repeat(9000)));
        assert!(!problem.detail.contains('\u{1b}'));
        assert!(problem.detail.len() <= TEXT_CHARS_MAX);
        assert_eq!(Problem::parse(500, b"<html>").code, "http_500");
        assert!(Problem::parse(503, b"").retryable);
    }
}
