//! GRUB's script language, parsed: commands, conditions, functions and menu entries, with words that still hold variables
//! (GRUB manual, "Writing full configuration files directly").

use std::rc::Rc;

/// Commands of one file; a grub.cfg of twenty kernels has some 1,000.
const COMMANDS_MAX: usize = 20_000;
/// Conditions inside of conditions.
const DEPTH_MAX: usize = 32;

pub type Script = Vec<Command>;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Simple(Vec<Word>),
    /// Conditions with what each leads to, and what is done if none holds.
    If(Vec<(Script, Script)>, Script),
    For {
        name: String,
        words: Vec<Word>,
        body: Script,
    },
    Function(String, Rc<Script>),
    /// `menuentry` or `submenu`.
    Entry {
        words: Vec<Word>,
        body: Rc<Script>,
        is_submenu: bool,
    },
}

/// Part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// Not in quotation marks, its value may be several words.
    Variable {
        name: String,
        is_quoted: bool,
    },
}

/// A word; one of no pieces is an empty one in quotation marks.
pub type Word = Vec<Piece>;

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// A line's end, or `;`.
    End,
    Open,
    Close,
}

/// What is wrong with a script, as a clause.
pub type Fault = &'static str;

/// Parses one.
pub fn parse(text: &str) -> Result<Script, Fault> {
    let tokens = tokens(text);
    let mut parser = Parser { tokens: &tokens, at: 0, commands: 0 };
    let script = parser.list(0, &[])?;
    if parser.at < tokens.len() { Err("it has a `}` or `fi` too many") } else { Ok(script) }
}

/// The pieces of a text in which variables count and nothing else does.
pub fn variables(text: &str) -> Word {
    let mut word = vec![];
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        push(&mut word, &rest[..at]);
        rest = &rest[at + 1..];
        match variable(rest) {
            Some((name, after)) => {
                word.push(Piece::Variable { name, is_quoted: true });
                rest = after;
            }
            None => push(&mut word, "$"),
        }
    }
    push(&mut word, rest);
    word
}

fn push(word: &mut Word, text: &str) {
    match word.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => word.push(Piece::Text(text.to_owned())),
    }
}

/// The name after a `$`, and what follows it.
fn variable(rest: &str) -> Option<(String, &str)> {
    if let Some(inner) = rest.strip_prefix('{') {
        let (name, after) = inner.split_once('}')?;
        return Some((name.to_owned(), after));
    }
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let end = match rest.chars().next()? {
        '?' | '#' | '*' | '@' => 1,
        first if is_name(first) => rest.find(|letter| !is_name(letter)).unwrap_or(rest.len()),
        _ => return None,
    };
    Some((rest[..end].to_owned(), &rest[end..]))
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = vec![];
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        match letter {
            '\n' | ';' => {
                tokens.push(Token::End);
                rest = &rest[1..];
            }
            '#' => rest = rest.find('\n').map_or("", |end| &rest[end..]),
            _ if letter.is_whitespace() => rest = &rest[letter.len_utf8()..],
            '\\' if rest.starts_with("\\\n") => rest = &rest[2..],
            '{' | '}' if rest[1..].chars().next().is_none_or(|next| next.is_whitespace() || next == ';') => {
                tokens.push(if letter == '{' { Token::Open } else { Token::Close });
                rest = &rest[1..];
            }
            _ => {
                let (word, after) = word(rest);
                tokens.push(Token::Word(word));
                rest = after;
            }
        }
    }
    tokens
}

fn word(text: &str) -> (Word, &str) {
    let mut word = vec![];
    let mut rest = text;
    let mut is_quoted = false;
    while let Some(letter) = rest.chars().next() {
        let after = &rest[letter.len_utf8()..];
        match letter {
            '"' => {
                is_quoted = !is_quoted;
                rest = after;
            }
            '\'' if !is_quoted => {
                let (inner, next) = after.split_once('\'').unwrap_or((after, ""));
                push(&mut word, inner);
                rest = next;
            }
            '\\' => {
                let escaped = after.chars().next();
                match escaped {
                    // In quotation marks only what has a meaning there is escaped.
                    Some(next) if is_quoted && !matches!(next, '"' | '\\' | '$' | '\n') => push(&mut word, "\\"),
                    Some('\n') | None => rest = after.strip_prefix('\n').unwrap_or(after),
                    Some(next) => {
                        push(&mut word, next.encode_utf8(&mut [0; 4]));
                        rest = &after[next.len_utf8()..];
                        continue;
                    }
                }
                rest = if escaped == Some('\n') { rest } else { after };
            }
            '$' => match variable(after) {
                Some((name, next)) => {
                    word.push(Piece::Variable { name, is_quoted });
                    rest = next;
                }
                None => {
                    push(&mut word, "$");
                    rest = after;
                }
            },
            _ if !is_quoted && (letter.is_whitespace() || letter == ';') => break,
            _ => {
                push(&mut word, letter.encode_utf8(&mut [0; 4]));
                rest = after;
            }
        }
    }
    (word, rest)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    commands: usize,
}

impl Parser<'_> {
    /// Commands until one of `ends` begins one, or a `}`; that one is left.
    fn list(&mut self, depth: usize, ends: &[&str]) -> Result<Script, Fault> {
        if depth > DEPTH_MAX {
            return Err("its conditions are too deep inside of each other");
        }
        let mut script = vec![];
        loop {
            while self.tokens.get(self.at) == Some(&Token::End) {
                self.at += 1;
            }
            match self.tokens.get(self.at) {
                None | Some(Token::Close) => return Ok(script),
                Some(Token::Word(word)) if keyword(word).is_some_and(|word| ends.contains(&word)) => return Ok(script),
                Some(_) => script.push(self.command(depth)?),
            }
            self.commands += 1;
            if self.commands > COMMANDS_MAX {
                return Err("it has too many commands");
            }
        }
    }

    fn command(&mut self, depth: usize) -> Result<Command, Fault> {
        let first = match self.tokens.get(self.at) {
            Some(Token::Word(word)) => keyword(word),
            _ => None,
        };
        match first {
            Some("if") => self.condition(depth),
            Some("for") => self.repetition(depth),
            Some("while" | "until" | "case" | "select") => Err("it has a loop without a list, which is not run"),
            Some("function") => {
                self.at += 1;
                let Some(Token::Word(word)) = self.tokens.get(self.at) else { return Err("it has a function without a name") };
                let name = keyword(word).unwrap_or_default().to_owned();
                self.at += 1;
                Ok(Command::Function(name, Rc::new(self.block(depth)?)))
            }
            Some(kind @ ("menuentry" | "submenu")) => {
                let is_submenu = kind == "submenu";
                let words = self.words();
                Ok(Command::Entry { words: words[1..].to_vec(), body: Rc::new(self.block(depth)?), is_submenu })
            }
            _ => {
                let words = self.words();
                // A block that stands alone is not of the language's subset.
                if words.is_empty() { Err("it has a `{` that begins nothing") } else { Ok(Command::Simple(words)) }
            }
        }
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = vec![];
        while let Some(Token::Word(word)) = self.tokens.get(self.at) {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn block(&mut self, depth: usize) -> Result<Script, Fault> {
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        if self.tokens.get(self.at) != Some(&Token::Open) {
            return Err("it has an entry or function without a `{`");
        }
        self.at += 1;
        let body = self.list(depth + 1, &[])?;
        if self.tokens.get(self.at) != Some(&Token::Close) {
            return Err("it has a `{` without its `}`");
        }
        self.at += 1;
        Ok(body)
    }

    fn condition(&mut self, depth: usize) -> Result<Command, Fault> {
        let (mut arms, mut otherwise) = (vec![], vec![]);
        loop {
            // `if` or `elif`.
            self.at += 1;
            let condition = self.list(depth + 1, &["then"])?;
            self.expect("then")?;
            arms.push((condition, self.list(depth + 1, &["elif", "else", "fi"])?));
            match self.here() {
                Some("elif") => {}
                Some("else") => {
                    self.at += 1;
                    otherwise = self.list(depth + 1, &["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.expect("fi")?;
        Ok(Command::If(arms, otherwise))
    }

    fn repetition(&mut self, depth: usize) -> Result<Command, Fault> {
        let words = self.words();
        let name = words.get(1).and_then(|word| keyword(word)).ok_or("it has a loop without a name")?.to_owned();
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        self.expect("do")?;
        let body = self.list(depth + 1, &["done"])?;
        self.expect("done")?;
        Ok(Command::For { name, words: words.into_iter().skip(3).collect(), body })
    }

    fn here(&self) -> Option<&str> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => keyword(word),
            _ => None,
        }
    }

    fn expect(&mut self, word: &'static str) -> Result<(), Fault> {
        if self.here() != Some(word) {
            return Err("it has an `if` or `for` that is not complete");
        }
        self.at += 1;
        Ok(())
    }
}

/// A word of one plain piece.
fn keyword(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}
