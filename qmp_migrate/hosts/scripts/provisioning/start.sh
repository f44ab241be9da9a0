#: $1 the agent's unit. Starts it anew, and says its last words where it does not come up.
set -eu
systemctl daemon-reload
systemctl enable --quiet "$1"
systemctl reset-failed "$1" 2>/dev/null || :
systemctl restart "$1" || { journalctl -u "$1" -n 8 -o cat --no-pager >&2 || :; exit 1; }
