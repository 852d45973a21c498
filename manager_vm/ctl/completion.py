"""Shell completion for vtpmctl: the verbs, their actions and files, and the names of vTPMs where a verb takes one.

Names come from the manager, which a host does not trust to run commands: they are compared, never expanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_BASH = """_vtpmctl() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} i name verb= actions= manager=()
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${{COMP_WORDS[i]}} in
      -m|--manager) manager=(-m "${{COMP_WORDS[i+1]}}"); ((i++));;
      --timeout|--key) ((i++));;
      -*) ;;
      *) verb=${{COMP_WORDS[i]}}; break;;
    esac
  done
  case $prev in
    -m|--manager|--key) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return;;
    --timeout) return;;
  esac
  case $verb in
{actions}
  esac
  if [[ $actions ]]; then
    if ((COMP_CWORD == i + 1)); then mapfile -t COMPREPLY < <(compgen -W "$actions" -- "$cur")
    elif [[ $prev == --role ]]; then mapfile -t COMPREPLY < <(compgen -W "{roles}" -- "$cur")
    else mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
    return
  fi
  case $verb in
    "") mapfile -t COMPREPLY < <(compgen -W "{verbs}" -- "$cur");;
    completion) mapfile -t COMPREPLY < <(compgen -W "{shells}" -- "$cur");;
    operator|group) mapfile -t COMPREPLY < <(compgen -W "add remove list" -- "$cur"; compgen -f -- "$cur");;
    platform) mapfile -t COMPREPLY < <(compgen -W "evidence activate install show" -- "$cur"; compgen -f -- "$cur");;
    standing) mapfile -t COMPREPLY < <(compgen -W "add list" -- "$cur"; compgen -f -- "$cur");;
    recovery) mapfile -t COMPREPLY < <(compgen -W "set show off" -- "$cur"; compgen -f -- "$cur");;
    audit) mapfile -t COMPREPLY < <(compgen -W "verify --last --follow --head" -- "$cur"; compgen -f -- "$cur");;
    provision|recover) mapfile -t COMPREPLY < <(compgen -f -- "$cur");;
    {named})
      while IFS= read -r name; do
        [[ $name =~ ^[A-Za-z0-9._-]+$ && $name == "$cur"* ]] && COMPREPLY+=("$name")
      done < <(vtpmctl "${{manager[@]}}" --timeout 2 names 2>/dev/null);;
  esac
}}
complete -F _vtpmctl vtpmctl
"""

_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"

_BASH_ACTIONS = '    {verb}) actions="{actions}";;'

_FISH = """complete -c vtpmctl -f
complete -c vtpmctl -n __fish_use_subcommand -a "{verbs}"
complete -c vtpmctl -n "__fish_seen_subcommand_from {named}; and not __fish_seen_subcommand_from {offline}" \\
  -a "(vtpmctl --timeout 2 names 2>/dev/null)"
complete -c vtpmctl -n "__fish_seen_subcommand_from completion" -a "{shells}"
complete -c vtpmctl -n "__fish_seen_subcommand_from operator group" -a "add remove list" -F
complete -c vtpmctl -n "__fish_seen_subcommand_from platform" -a "evidence activate install show" -F
complete -c vtpmctl -n "__fish_seen_subcommand_from standing" -a "add list" -F
complete -c vtpmctl -n "__fish_seen_subcommand_from recovery" -a "set show off" -F
complete -c vtpmctl -n "__fish_seen_subcommand_from audit" -a "verify" -F
complete -c vtpmctl -n "__fish_seen_subcommand_from provision recover" -F
"""

_FISH_ACTIONS = """complete -c vtpmctl -n "__fish_seen_subcommand_from {verb}" -F
complete -c vtpmctl -n "__fish_seen_subcommand_from {verb}; and not __fish_seen_subcommand_from {actions}" \\
  -a "{actions}"
complete -c vtpmctl -n "__fish_seen_subcommand_from {verb}" -l role -x -a "{roles}"
"""

SHELLS = ("bash", "zsh", "fish")


def script(
    shell: str, verbs: list[str], named: list[str], actions: Mapping[str, Iterable[str]], roles: Iterable[str]
) -> str:
    """What to ``source`` in that shell.

    ``named``: the verbs that take the name of a vTPM that exists. ``actions``: verb -> its second words, for verbs that
    take files behind them. ``roles``: what --role can be.
    """
    words = {"verbs": " ".join(verbs), "shells": " ".join(SHELLS), "roles": " ".join(roles)}
    second = [{"verb": verb, "actions": " ".join(each), "roles": words["roles"]} for verb, each in actions.items()]
    if shell == "fish":
        text = _FISH.format(**words, named=" ".join(named), offline=" ".join(actions))
        return text + "".join(_FISH_ACTIONS.format(**each) for each in second)
    lines = "\n".join(_BASH_ACTIONS.format(**each) for each in second)
    text = _BASH.format(**words, named="|".join(named), actions=lines)
    return (_ZSH if shell == "zsh" else "") + text
