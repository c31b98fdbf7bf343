//! Rust text, read without a compiler: which part of a line is code, which is comment, which belongs to tests.
//!
//! This is a lexer of strings and comments and a matcher of braces, no more. It knows no types and expands no macro, which
//! is enough for rules about words, and keeps `tidy` under a second.
//!
//! INVARIANT: what stands in a string, a character or a comment never counts as code.

/// What a line says outside its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comment {
    /// Nothing.
    None,
    /// `//` or `/* */`.
    Plain,
    /// `///`, `//!` or the like.
    Doc,
}

/// One line of a file.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The code, with the insides of strings and comments blanked.
    pub(crate) code: String,
    /// The line as it stands.
    pub(crate) text: String,
    /// Its comment, if it has one.
    pub(crate) comment: Comment,
    /// Whether it belongs to a test item or a test file.
    pub(crate) test: bool,
}

/// One function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Lines from `fn` to the closing brace, both counted.
    pub(crate) lines: usize,
    /// Whether it is `async`.
    pub(crate) awaits: bool,
}

/// One Rust file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Path from the workspace's root, with `/`.
    pub(crate) path: String,
    /// Its lines.
    pub(crate) lines: Vec<Line>,
}

impl Source {
    /// Reads a file's text. Files under `tests/` or `benches/` and all of `testkit` are test code.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let mut source = Self { path: path.to_owned(), lines: lines(text) };
        let test_file = ["/tests/", "/benches/", "/testkit/"].iter().any(|part| path.contains(part));
        if test_file || source.lines.iter().any(|line| line.code.starts_with("#![cfg(test)]")) {
            source.mark_as_tests();
        } else {
            mark_test_items(&mut source.lines);
        }
        source
    }

    /// Counts the whole file as test code.
    pub(crate) fn mark_as_tests(&mut self) {
        for line in &mut self.lines {
            line.test = true;
        }
    }

    /// The crate it belongs to: the directory under `crates/`, or the first directory.
    pub(crate) fn package(&self) -> &str {
        let path = self.path.strip_prefix("crates/").unwrap_or(&self.path);
        path.split('/').next().unwrap_or(path)
    }

    /// Lines of production code with their numbers from 1.
    pub(crate) fn production(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().map(|(index, line)| (index + 1, line)).filter(|(_, line)| !line.test)
    }

    /// Paths of the files that `mod name;` inside a test item declares: they are test files too.
    pub(crate) fn test_files(&self) -> Vec<String> {
        let stem = self.path.strip_suffix(".rs").unwrap_or(&self.path);
        let parent = stem.rsplit_once('/').map_or("", |(parent, _)| parent);
        let directory = match stem.rsplit('/').next() {
            Some("lib" | "main") => parent,
            _ => stem,
        };
        let declared = self.lines.iter().filter(|line| line.test).filter_map(|line| {
            line.code.trim().strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name.trim())
        });
        declared.map(|name| format!("{directory}/{name}.rs")).collect()
    }

    /// The functions of the production code.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let code = Code::of(&self.lines);
        let mut functions = Vec::new();
        for at in code.words("fn") {
            let named = code.chars.get(at + 2).is_some_and(|c| c.is_whitespace());
            let line = code.line(at);
            if !named || self.lines.get(line).is_none_or(|line| line.test) {
                continue;
            }
            let Some((open, '{')) = code.body(at) else { continue };
            let Some(close) = code.closing(open) else { continue };
            let before: String =
                code.chars.get(at.saturating_sub(24)..at).unwrap_or_default().iter().collect();
            let head = before.rsplit(['\n', ';', '}', '{']).next().unwrap_or_default();
            functions.push(Function { lines: code.line(close) - line + 1, awaits: has_word(head, "async") });
        }
        functions
    }
}

/// Whether a word stands in the text with nothing of an identifier on either side.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        let after = text.get(at + word.len()..).and_then(|after| after.chars().next());
        let open_start = word.starts_with(part_of_name) && before.is_some_and(part_of_name);
        let open_end = word.ends_with(part_of_name) && after.is_some_and(part_of_name);
        !open_start && !open_end
    })
}

enum State {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
}

/// Splits a text into lines whose strings and comments are blanked.
fn lines(text: &str) -> Vec<Line> {
    let mut state = State::Code;
    text.lines().map(|line| one_line(line, &mut state)).collect()
}

fn one_line(text: &str, state: &mut State) -> Line {
    let chars: Vec<char> = text.chars().collect();
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut comment = if matches!(state, State::BlockComment(_)) { Comment::Plain } else { Comment::None };
    let mut at = 0;
    while at < chars.len() {
        let (c, next) = (peek(at), peek(at + 1));
        let step = match *state {
            State::LineComment => 1,
            State::BlockComment(depth) => match (c, next) {
                ('*', '/') => {
                    *state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                    2
                }
                ('/', '*') => {
                    *state = State::BlockComment(depth + 1);
                    2
                }
                _ => 1,
            },
            State::Text => match c {
                '\\' => 2,
                '"' => {
                    *state = State::Code;
                    code.push('"');
                    at += 1;
                    continue;
                }
                _ => 1,
            },
            State::RawText(hashes) => {
                if c == '"' && (1..=hashes).all(|offset| peek(at + offset) == '#') {
                    *state = State::Code;
                    1 + hashes
                } else {
                    1
                }
            }
            State::Code => match (c, next) {
                ('/', '/') => {
                    let doc = matches!(peek(at + 2), '/' | '!') && peek(at + 3) != '/';
                    comment = if doc { Comment::Doc } else { Comment::Plain };
                    *state = State::LineComment;
                    2
                }
                ('/', '*') => {
                    comment = if matches!(peek(at + 2), '*' | '!') { Comment::Doc } else { Comment::Plain };
                    *state = State::BlockComment(1);
                    2
                }
                ('"', _) => {
                    *state = State::Text;
                    code.push('"');
                    at += 1;
                    continue;
                }
                ('r', '"' | '#') if !names(code.chars().next_back()) || ends_with_byte_prefix(&code) => {
                    let hashes = (1..).take_while(|offset| peek(at + offset) == '#').count();
                    if peek(at + 1 + hashes) == '"' {
                        *state = State::RawText(hashes);
                        2 + hashes
                    } else {
                        code.push(c);
                        at += 1;
                        continue;
                    }
                }
                ('\'', '\\') => {
                    let closing = (at + 3..chars.len()).find(|&place| peek(place) == '\'');
                    closing.map_or(chars.len(), |place| place + 1) - at
                }
                ('\'', _) if peek(at + 2) == '\'' => 3,
                _ => {
                    code.push(c);
                    at += 1;
                    continue;
                }
            },
        };
        code.extend(std::iter::repeat_n(' ', step));
        at += step;
    }
    if matches!(state, State::LineComment) {
        *state = State::Code;
    }
    Line { code: code.trim_end().to_owned(), text: text.to_owned(), comment, test: false }
}

fn names(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

/// Whether the code read so far ends in a `b` that stands alone, as in `br"…"`.
fn ends_with_byte_prefix(code: &str) -> bool {
    code.strip_suffix('b').is_some_and(|before| !names(before.chars().next_back()))
}

/// Marks the items behind `#[cfg(test)]`, `#[test]` and their relatives.
fn mark_test_items(lines: &mut [Line]) {
    const MARKS: &[&str] = &["#[cfg(test)]", "#[cfg(all(test", "#[cfg(any(test", "#[test]", "#[tokio::test"];
    let code = Code::of(lines);
    let text: String = code.chars.iter().collect();
    let mut ranges = Vec::new();
    for mark in MARKS {
        for (byte, _) in text.match_indices(mark) {
            let at = text.get(..byte).map_or(0, |before| before.chars().count());
            let after = code.closing(at + 1).unwrap_or(at) + 1;
            let end = match code.body(after) {
                Some((open, '{')) => code.closing(open).unwrap_or(code.chars.len()),
                Some((end, _)) => end,
                None => code.chars.len(),
            };
            ranges.push((code.line(at), code.line(end)));
        }
    }
    for (first, last) in ranges {
        for line in lines.iter_mut().take(last + 1).skip(first) {
            line.test = true;
        }
    }
}

/// The code of a file in one piece, with the way back to line indices.
struct Code {
    chars: Vec<char>,
    starts: Vec<usize>,
}

impl Code {
    fn of(lines: &[Line]) -> Self {
        let (mut chars, mut starts) = (Vec::new(), Vec::new());
        for line in lines {
            starts.push(chars.len());
            chars.extend(line.code.chars());
            chars.push('\n');
        }
        Self { chars, starts }
    }

    /// Index of the line that holds a place.
    fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|&start| start <= at).saturating_sub(1)
    }

    /// Places where a word stands alone.
    fn words(&self, word: &str) -> Vec<usize> {
        let length = word.chars().count();
        let is_word = |at: usize| {
            self.chars.get(at..at + length).is_some_and(|part| part.iter().copied().eq(word.chars()))
                && !names(at.checked_sub(1).and_then(|before| self.chars.get(before)).copied())
                && !names(self.chars.get(at + length).copied())
        };
        (0..self.chars.len()).filter(|&at| is_word(at)).collect()
    }

    /// The first `{` or `;` outside parentheses and brackets: where an item's body opens, or the item ends.
    fn body(&self, from: usize) -> Option<(usize, char)> {
        let mut depth = 0_i32;
        for (at, &c) in self.chars.iter().enumerate().skip(from) {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                '{' | ';' if depth == 0 => return Some((at, c)),
                _ => {}
            }
        }
        None
    }

    /// The bracket that closes the one at a place.
    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0_i32;
        for (at, &c) in self.chars.iter().enumerate().skip(open) {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        lines(text).into_iter().map(|line| line.code.trim().to_owned()).collect()
    }

    #[test]
    fn strings_comments_and_characters_are_no_code() {
        assert_eq!(code("let a = \"unsafe { }\"; // unsafe"), ["let a = \"          \";"]);
        assert_eq!(code("let a = r#\"todo!\"\"#; b()"), ["let a =            ; b()"]);
        assert_eq!(code("let a = ('{', '\\'', '\"'); b('x')"), ["let a = (   ,     ,    ); b(   )"]);
        assert_eq!(code("a /* one /* two */\nstill */ b"), ["a", "b"]);
        assert_eq!(code("let a = \"one\ntwo \\\" three\"; b"), ["let a = \"", "\"; b"]);
        assert_eq!(code("fn a<'a>(b: &'a str) {}"), ["fn a<'a>(b: &'a str) {}"]);
    }

    #[test]
    fn test_items_are_told_from_production() {
        let text = "//! Doc.\nfn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {\n}\n";
        let source = Source::new("crates/market/src/lib.rs", text);
        let tests: Vec<bool> = source.lines.iter().map(|line| line.test).collect();
        assert_eq!(tests, [false, false, true, true, true, true, true, false, false]);
        assert_eq!(
            source.functions(),
            [Function { lines: 1, awaits: false }, Function { lines: 2, awaits: false }]
        );
    }

    #[test]
    fn a_test_module_in_its_own_file_is_found() {
        let source =
            Source::new("crates/risk/src/checks.rs", "//! Doc.\n#[cfg(test)]\nmod cases;\nmod other;\n");
        assert_eq!(source.test_files(), ["crates/risk/src/checks/cases.rs"]);
        let source = Source::new("crates/risk/src/lib.rs", "//! Doc.\n#[cfg(test)]\nmod tests;\n");
        assert_eq!(source.test_files(), ["crates/risk/src/tests.rs"]);
    }

    #[test]
    fn functions_are_measured_with_their_signature() {
        let text = "pub async fn a(\n    b: [u8; 4],\n) -> u8 {\n    1\n}\ntrait T {\n    fn d(&self);\n}\n";
        let source = Source::new("crates/wire/src/lib.rs", text);
        assert_eq!(source.functions(), [Function { lines: 5, awaits: true }]);
    }

    #[test]
    fn a_word_is_not_found_inside_a_longer_name() {
        assert!(has_word("a.await?", ".await"));
        assert!(has_word("use tokio::net", "tokio"));
        assert!(!has_word("use tokio_like::net", "tokio"));
        assert!(!has_word("unsafe_code", "unsafe"));
    }
}
