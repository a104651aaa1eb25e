//! From source text to paths: all paths of a file, each with the module that it stands in and its line.

use std::iter::Peekable;

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree, token_stream};

/// A path as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The module it stands in, from the root of the crate.
    pub(crate) module: Vec<String>,
    pub(crate) segments: Vec<String>,
    /// From 1.
    pub(crate) line: usize,
    /// It stands in a `use`: under which name the module has it from then on. A glob has none.
    pub(crate) import: Option<Import>,
}

/// What a `use` does with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Import {
    Name(String),
    Glob,
}

/// What is in a file.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    pub(crate) paths: Vec<Path>,
    /// Modules that are declared, with a body or without.
    pub(crate) modules: Vec<Vec<String>>,
}

type Tokens = Peekable<token_stream::IntoIter>;

/// Scans the file of a module.
pub(crate) fn scan(source: &str, module: &[String]) -> Result<Scanned, String> {
    let tokens: TokenStream = source.parse().map_err(|error| format!("{error}"))?;
    let mut scanned = Scanned::default();
    scan_tokens(tokens, module, &mut scanned);
    Ok(scanned)
}

fn scan_tokens(tokens: TokenStream, module: &[String], scanned: &mut Scanned) {
    let mut tokens = tokens.into_iter().peekable();
    // The last token was a dot (a field or a method follows) or a quote (a lifetime).
    let mut is_no_path = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(_) if is_no_path => is_no_path = false,
            TokenTree::Ident(ident) if ident == "use" => scan_use(&mut tokens, module, scanned),
            TokenTree::Ident(ident) if ident == "mod" => scan_mod(&mut tokens, module, scanned),
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                let mut segments = vec![ident.to_string()];
                while take_colons(&mut tokens) {
                    match tokens.peek() {
                        Some(TokenTree::Ident(next)) => segments.push(next.to_string()),
                        _ => break,
                    }
                    tokens.next();
                }
                if segments.len() > 1 {
                    scanned.paths.push(Path {
                        module: module.to_vec(),
                        segments,
                        line,
                        import: None,
                    });
                }
            }
            TokenTree::Group(group) => scan_tokens(group.stream(), module, scanned),
            TokenTree::Punct(punct) => {
                // Two dots are a range, and what follows is read as anything else.
                let is_range = punct.as_char() == '.' && take_dots(&mut tokens);
                is_no_path = !is_range && ['.', '\''].contains(&punct.as_char());
            }
            TokenTree::Literal(_) => is_no_path = false,
        }
    }
}

/// Takes the dots that come next; true if there are any.
fn take_dots(tokens: &mut Tokens) -> bool {
    let is_dot =
        |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == '.');
    let mut are_any = false;
    while tokens.next_if(is_dot).is_some() {
        are_any = true;
    }
    are_any
}

/// Takes `::` if it is next.
fn take_colons(tokens: &mut Tokens) -> bool {
    let is_first = matches!(
        tokens.peek(),
        Some(TokenTree::Punct(punct)) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint
    );
    if is_first {
        tokens.next();
        tokens.next();
    }
    is_first
}

fn scan_mod(tokens: &mut Tokens, module: &[String], scanned: &mut Scanned) {
    let Some(TokenTree::Ident(name)) = tokens.peek() else {
        return;
    };
    let child: Vec<String> = module.iter().cloned().chain([name.to_string()]).collect();
    tokens.next();
    scanned.modules.push(child.clone());
    if let Some(TokenTree::Group(body)) = tokens.peek()
        && body.delimiter() == Delimiter::Brace
    {
        let body = body.stream();
        tokens.next();
        scan_tokens(body, &child, scanned);
    }
}

fn scan_use(tokens: &mut Tokens, module: &[String], scanned: &mut Scanned) {
    // `use<'a>` bounds what an opaque type captures and imports nothing.
    if matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == '<') {
        return;
    }
    let tree = tokens.by_ref();
    let tree = tree
        .take_while(|token| !matches!(token, TokenTree::Punct(punct) if punct.as_char() == ';'));
    let tree: TokenStream = tree.collect();
    scan_tree(tree, &[], module, scanned);
}

/// One use tree, or several with commas between.
fn scan_tree(tree: TokenStream, prefix: &[String], module: &[String], scanned: &mut Scanned) {
    let mut tokens = tree.into_iter().peekable();
    while tokens.peek().is_some() {
        let mut segments = prefix.to_vec();
        let mut line = 0;
        let mut import = None;
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(ident) if ident == "as" => {
                    let alias = tokens.next().map(|alias| alias.to_string());
                    import = alias.map(Import::Name);
                }
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    segments.push(ident.to_string());
                }
                TokenTree::Group(group) => {
                    scan_group(&group, &segments, module, scanned);
                    segments.clear();
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    line = punct.span().start().line;
                    import = Some(Import::Glob);
                }
                TokenTree::Punct(punct) if punct.as_char() == ',' => break,
                _ => {}
            }
        }
        if segments.len() > prefix.len() || import.is_some() {
            // `a::{self}` is `a`.
            if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
                segments.pop();
            }
            let name = segments.last().cloned().map(Import::Name);
            scanned.paths.push(Path {
                module: module.to_vec(),
                segments,
                line,
                import: import.or(name),
            });
        }
    }
}

fn scan_group(group: &Group, prefix: &[String], module: &[String], scanned: &mut Scanned) {
    scan_tree(group.stream(), prefix, module, scanned);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        let scanned = scan(source, &["here".to_owned()]).unwrap();
        let paths = scanned.paths.iter();
        paths
            .map(|path| {
                format!(
                    "{}:{} {}",
                    path.line,
                    path.module.join("::"),
                    path.segments.join("::")
                )
            })
            .collect()
    }

    #[test]
    fn nested_trees_of_a_use_are_taken_apart() {
        let source = "use crate::{a::{self, B as C, d::*}, e};\nuse super::f;";
        assert_eq!(
            paths(source),
            [
                "1:here crate::a",
                "1:here crate::a::B",
                "1:here crate::a::d",
                "1:here crate::e",
                "2:here super::f",
            ]
        );
    }

    #[test]
    fn a_path_counts_wherever_it_stands() {
        let source = "fn f(x: &'static crate::a::T) -> impl Fn(super::B) {\n\
                      vec![crate::c::D::new(), self.x.y::<crate::e::F>()]; 1..crate::g::H\n}";
        assert_eq!(
            paths(source),
            [
                "1:here crate::a::T",
                "1:here super::B",
                "2:here crate::c::D::new",
                "2:here crate::e::F",
                "2:here crate::g::H",
            ]
        );
    }

    #[test]
    fn a_module_with_a_body_is_a_module_of_its_own() {
        let source = "mod tests { use super::a::B; }\nmod other;";
        assert_eq!(paths(source), ["1:here::tests super::a::B"]);
        let modules = scan(source, &[]).unwrap().modules;
        assert_eq!(modules, [["tests"], ["other"]]);
    }

    #[test]
    fn comments_and_texts_are_no_paths() {
        assert!(
            paths("/// [`crate::a::B`]\nconst A: &str = \"crate::c::D\"; // crate::e::F")
                .is_empty()
        );
    }
}
