"""The table of convergence policies for the documentation."""

from __future__ import annotations

from qmp_migrate.migration.convergence.policies import POLICIES, Policy


def policy_table(made: str) -> str:
    """Return every policy with its figures as Markdown; ours first."""
    lines = [f"<!-- {made} -->", ""]
    for title, rows in (
        ("ours", [p for p in POLICIES.values() if p.of is None]),
        ("what others do, for comparison", [p for p in POLICIES.values() if p.of is not None]),
    ):
        lines += [
            f"| {title} | starts with | slows the guest down | post-copy | stops the guest | in words |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(policy) for policy in rows]
        lines.append("")
    return "\n".join(lines)


def _row(policy: Policy) -> str:
    whose = f" ({policy.of})" if policy.of else ""
    rate = f", {policy.bandwidth_bytes_per_s >> 20} MiB/s" if policy.bandwidth_bytes_per_s else ""
    cells = (
        f"`{policy.name}`{whose}",
        f"{policy.start_ms} ms{rate}",
        _throttle(policy),
        "where both ends can" if policy.postcopy else "",
        "at last" if policy.stop else "",
        policy.summary,
    )
    return "| " + " | ".join(cells) + " |"


def _throttle(policy: Policy) -> str:
    if policy.of is not None:
        return f"up to {policy.auto_converge['max-cpu-throttle']} %" if policy.auto_converge else ""
    return f"up to {policy.throttle_percent} %" if policy.throttle_percent else ""
