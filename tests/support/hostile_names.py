"""Names and strings that break careless output and careless scripts."""

from __future__ import annotations

HOSTILE = {
    "_x": {"model.swiglu": True},
    "a$b$": {"model.rmsnorm": True},
    "<script>alert(1)</script>": {"model.rope": True},
    "x" * 80: {"trainer.warmup_steps": 9},
    "&amp;|`*_\\": {"trainer.use_cosine": True},
    "漢字": {"trainer.warmup_steps": 5},
    "$$": {"trainer.warmup_steps": 4},
}

# Strings that a shell, Slurm, YAML or Jinja could interpret; if one is executed, it creates the file CANARY
WORDS = (
    "$(touch CANARY)", "`touch CANARY`", "; touch CANARY ;", "\ntouch CANARY\n", "&& touch CANARY", "| touch CANARY",
    "' ; touch CANARY ; '", '" ; touch CANARY ; "', "\\'; touch CANARY #", "\\", "a\\\nb", "$'\\x27; touch CANARY #'",
    "<(touch CANARY)", "> CANARY", "{touch,CANARY}", "!!", "~", "*", "# touch CANARY", "\n#SBATCH --wrap=x", "%j %A_%a",
    "{{ 7*7 }}", "{% raw %}", "{run_dir} {flags}", "--", "-rf", "() { :; }; touch CANARY", "", " a  b ", "\t",
    "\x1b[31m\x7f", "żółw 学习 🐢", "$HOME $$ $@", "<<EOF\ntouch CANARY\nEOF", "'", '"', "null", "1e5", "[1, 2]", "a=b",
)  # fmt: skip
FOLDERS = (
    "$(touch CANARY) `touch CANARY`", "; touch CANARY ; && x", "it's \"so\"", " two  blanks ", "*?[a-z]~#x",
    "{{ 7*7 }} {% raw %}", "-rf", "żółw 🐢", "100%j",
)  # fmt: skip
