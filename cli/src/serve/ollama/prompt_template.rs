//! The `template` of `/api/generate`: Go's template language, as far as prompts of one turn use it.
//!
//! `{{ .System }}`, `{{ .Prompt }}`, `{{ .Response }}` (where the answer begins), `{{ if .System }}...{{ else }}...{{
//! end }}`, comments, and dashes that trim white space. Anything more is refused, since a prompt that is quietly wrong
//! costs more time than one that is refused; `/api/chat` uses the model's own template.

use crate::serve::errors::{ApiError, ApiResult};

/// Renders a template; what stands behind `.Response` is left out.
///
/// # Errors
/// 400 for what is not understood.
pub fn render(template: &str, system: &str, prompt: &str) -> ApiResult<String> {
    let parts = split(template)?;
    let mut output = String::new();
    // For every `if` that is open: whether its current branch is taken, and whether any has been.
    let mut branches: Vec<(bool, bool)> = Vec::new();
    let value = |name: &str| match name {
        ".System" => Ok(system),
        ".Prompt" => Ok(prompt),
        ".Response" => Ok(""),
        _ => Err(refused(name)),
    };
    for part in parts {
        let is_taken = branches.iter().all(|(is_taken, _)| *is_taken);
        match part {
            Part::Text(text) => {
                if is_taken {
                    output.push_str(text);
                }
            }
            Part::Action(action) => match action.split_whitespace().collect::<Vec<_>>()[..] {
                ["if", name] => {
                    let holds = !value(name)?.is_empty();
                    branches.push((holds, holds));
                }
                ["else"] => {
                    let (branch, any) = branches.last_mut().ok_or_else(|| refused("else without if"))?;
                    *branch = !*any;
                    *any = true;
                }
                ["else", "if", name] => {
                    let holds = !value(name)?.is_empty();
                    let (branch, any) = branches.last_mut().ok_or_else(|| refused("else without if"))?;
                    *branch = !*any && holds;
                    *any |= holds;
                }
                ["end"] => {
                    branches.pop().ok_or_else(|| refused("end without if"))?;
                }
                [".Response"] if is_taken => return Ok(output),
                [name] => {
                    let text = value(name)?;
                    if is_taken {
                        output.push_str(text);
                    }
                }
                _ if action.starts_with("/*") => {}
                _ => return Err(refused(action)),
            },
        }
    }
    match branches.is_empty() {
        true => Ok(output),
        false => Err(refused("if without end")),
    }
}

enum Part<'a> {
    Text(&'a str),
    Action(&'a str),
}

fn split(template: &str) -> ApiResult<Vec<Part<'_>>> {
    let (mut parts, mut rest, mut trims_start) = (Vec::new(), template, false);
    loop {
        let (text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        let mut text = if trims_start { text.trim_start() } else { text };
        let Some(after) = after else {
            parts.push(Part::Text(text));
            return Ok(parts);
        };
        let (action, behind) = after.split_once("}}").ok_or_else(|| refused("{{ without }}"))?;
        let trimmed = action.strip_prefix('-').filter(|action| action.starts_with(char::is_whitespace));
        if trimmed.is_some() {
            text = text.trim_end();
        }
        let action = trimmed.unwrap_or(action);
        let trimmed = action.strip_suffix('-').filter(|action| action.ends_with(char::is_whitespace));
        trims_start = trimmed.is_some();
        parts.push(Part::Text(text));
        parts.push(Part::Action(trimmed.unwrap_or(action).trim()));
        rest = behind;
    }
}

fn refused(what: &str) -> ApiError {
    ApiError::bad_request(format!(
        "template: {what:?} is not supported; use .System, .Prompt, .Response and if/else/end, or send raw: true with \
         the whole prompt, or use /api/chat for the model's own template"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_template() {
        let template = "{{- if .System }}<|system|>\n{{ .System }}</s>\n{{ end }}<|user|>\n{{ .Prompt }}</s>\n<|assistant|>\n{{ .Response }}</s>";
        assert_eq!(render(template, "", "Hi").unwrap(), "<|user|>\nHi</s>\n<|assistant|>\n");
        assert_eq!(
            render(template, "Be brief.", "Hi").unwrap(),
            "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
        );
    }

    #[test]
    fn branches_and_trimming() {
        let template = "a  {{- if .System }} S {{ else if .Prompt -}}  P {{- else }} N {{ end }}{{/* why */}}.";
        assert_eq!(render(template, "s", "p").unwrap(), "a S .");
        assert_eq!(render(template, "", "p").unwrap(), "aP.");
        assert_eq!(render(template, "", "").unwrap(), "a N .");
        assert_eq!(render("{{ if .System }}{{ if .Prompt }}x{{ end }}{{ end }}y", "", "p").unwrap(), "y");
    }

    #[test]
    fn what_is_refused() {
        for template in [
            "{{ range .Messages }}{{ end }}",
            "{{ .Tools }}",
            "{{ if .System }}",
            "{{ end }}",
            "{{ else }}",
            "{{ .Prompt",
        ] {
            assert_eq!(render(template, "", "").unwrap_err().status, 400, "{template}");
        }
    }
}
