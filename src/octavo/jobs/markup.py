"""What the console shows of jobs, as markup in the console's own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from octavo.jobs.kinds import Kind
from octavo.jobs.records import STATES, Job, LogLine, Schedule

STYLE = """
.oj-states { display: flex; flex-wrap: wrap; gap: 8px; margin-bottom: 16px; }
body .oj-states a { display: inline-flex; gap: 8px; padding: 4px 12px; border: 1px solid var(--line);
  border-radius: 999px; color: var(--ink); font-size: .875rem; background: var(--surface); text-decoration: none; }
body .oj-states a[aria-current] { border-color: var(--accent); color: var(--accent); background: var(--accent-soft); }
.oj-states b { font-weight: 500; color: var(--quiet); font-variant-numeric: tabular-nums; }
.oj-bar { height: 6px; border-radius: 3px; background: var(--part-rest); overflow: hidden; min-width: 72px; }
.oj-bar > i { display: block; height: 100%; background: var(--accent); transition: width .3s; }
.oj-name { display: block; font-weight: 500; }
.oj-note { color: var(--quiet); font-size: .85rem; max-width: 72ch; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; display: block; }
.oj-small { display: none; }
.oj-table td { vertical-align: middle; }
.oj-table .oj-progress { width: 130px; }
.oj-table time { white-space: nowrap; }
.oj-log { margin: 0; padding: 14px 16px; max-height: 60vh; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 12.5px/1.6 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.oj-log time { color: var(--quiet); margin-right: 12px; user-select: none; }
.oj-actions { margin-top: 16px; min-height: 36px; }
.oj-schedule + .oj-schedule { border-top: 1px solid var(--line); padding-top: 8px; margin-top: 8px; }
.oj-schedule { flex-wrap: nowrap; }
.oj-schedule > :first-child { min-width: 0; }
.oj-head { display: flex; flex-wrap: wrap; align-items: center; gap: 12px; margin-bottom: 12px; }
.oj-head .oj-bar { flex: 1 1 160px; }
@media (max-width: 700px) {
  .oj-table .oj-late { display: none; }
  .oj-note { max-width: 23ch; }
  .oj-table .oj-progress { display: none; }
  .oj-small { display: block; margin-top: 8px; }
  .oj-log time { display: block; }
}
"""

_TAGS = {"running": "o-busy", "succeeded": "o-good", "failed": "o-bad", "cancelled": "o-warn"}


def draw_states(counts: Mapping[str, int], chosen: str) -> str:
    """Links that filter by state, with how many there are."""
    links = [("", "All", sum(counts.values())), *((state, state.capitalize(), counts[state]) for state in STATES)]
    drawn = [
        f'<a href="/jobs{f"?state={state}" if state else ""}" {"aria-current=true" if state == chosen else ""}>'
        f"{label}<b>{count}</b></a>"
        for state, label, count in links
    ]
    return f'<nav class="oj-states" aria-label="Filter by state">{"".join(drawn)}</nav>'


def draw_list(jobs: Sequence[Job], kinds: Mapping[str, Kind], state: str, page: int, more: bool) -> str:
    """The table of jobs, with links to the pages before and after."""
    if not jobs:
        return '<div class="o-card o-empty">No jobs here. Work over a second shows up by itself.</div>'
    rows = "".join(_row(job, kinds) for job in jobs)
    query = f"state={state}&" if state else ""
    links = f'<a href="/jobs?{query}page={page - 1}">Newer</a>' if page > 1 else ""
    links += f' <a href="/jobs?{query}page={page + 1}">Older</a>' if more else ""
    return (
        '<div class="o-card o-scroll"><table class="o-table oj-table"><thead><tr><th>Job</th><th>State</th>'
        '<th class="oj-progress">Progress</th><th class="oj-late">Created (UTC)</th>'
        '<th class="o-number oj-late">Took</th></tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="o-row" style="margin-top: 12px">{links}</p>'
    )


def draw_job(job: Job, kinds: Mapping[str, Kind]) -> str:
    """One job: state, progress, error, facts."""
    error = ""
    if job.error is not None:
        lines = [f"<strong>{escape(job.error.what)}</strong>", escape(job.error.where), escape(job.error.fix)]
        error = f'<div class="o-alert" style="margin-bottom: 16px">{"<br>".join(line for line in lines if line)}</div>'
    facts = [
        ("Job", f"<span class='o-mono'>{job.id}</span>"),
        ("Kind", f"<span class='o-mono'>{escape(job.kind)}</span>"),
        ("Arguments", _code(job.arguments)),
        ("Owner", escape(job.owner)),
        ("Schedule", escape(job.schedule or "")),
        ("Created (UTC)", _time(job.created)),
        ("Started (UTC)", _time(job.started)),
        ("Finished (UTC)", _time(job.finished)),
        ("Took", _seconds(job.seconds)),
        ("Attempts", str(job.attempts) if job.attempts > 1 else ""),
        ("Result", _code(job.result) if job.state == "succeeded" else ""),
    ]
    rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in facts if value)
    return (
        f'<div class="oj-head"><span class="oj-name">{escape(_title(job, kinds))}</span>{_tag(job)}{_bar(job)}'
        f'<span class="o-quiet o-small">{job.progress:.0%} {escape(job.message)}</span></div>{error}'
        f'<div class="o-card o-scroll"><table class="o-table o-facts">{rows}</table></div>'
    )


def draw_log(lines: Sequence[LogLine]) -> str:
    """The log, times in UTC."""
    if not lines:
        return '<div class="o-card o-quiet">Nothing was written.</div>'
    drawn = "\n".join(f"<time>{line.time:%H:%M:%S}</time>{escape(line.text)}" for line in lines)
    return f'<div class="o-card" style="padding: 0"><pre class="oj-log" tabindex="0">{drawn}</pre></div>'


def draw_schedule(schedule: Schedule) -> str:
    """One schedule."""
    last = f'<a href="/jobs/{schedule.last_job}">last job</a>' if schedule.last_job else "not run yet"
    return (
        f'<span class="oj-name">{escape(schedule.name)} <code>{escape(schedule.cron)}</code></span>'
        f'<span class="o-quiet o-small">{escape(schedule.kind)}, next {_time(schedule.next_run)} UTC, {last}</span>'
    )


def _row(job: Job, kinds: Mapping[str, Kind]) -> str:
    note = job.error.what if job.error is not None else job.message
    title = _title(job, kinds)
    note = note or (job.kind if title != job.kind else "")
    return (
        f'<tr><td><a class="oj-name" href="/jobs/{job.id}">{escape(title)}</a>'
        f'<span class="oj-note">{escape(note)}</span><div class="oj-small">{_bar(job)}</div></td><td>{_tag(job)}</td>'
        f'<td class="oj-progress">{_bar(job)}</td><td class="oj-late">{_time(job.created)}</td>'
        f'<td class="o-number oj-late">{_seconds(job.seconds)}</td></tr>'
    )


def _title(job: Job, kinds: Mapping[str, Kind]) -> str:
    return kinds[job.kind].title if job.kind in kinds else job.kind


def _tag(job: Job) -> str:
    state = "cancelling" if job.cancelling else job.state
    return f'<span class="o-tag {_TAGS.get(job.state, "")}">{state}</span>'


def _bar(job: Job) -> str:
    done = f"{job.progress:.0%}"
    return (
        f'<div class="oj-bar" role="progressbar" aria-valuenow="{100 * job.progress:.0f}" aria-label="{done} done" '
        f'title="{done}"><i style="width: {100 * job.progress:.1f}%"></i></div>'
    )


def _code(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"<code>{escape(text[:2000])}{'…' if len(text) > 2000 else ''}</code>"


def _time(moment: datetime | None) -> str:
    if moment is None:
        return ""
    today = moment.date() == datetime.now(UTC).date()
    return f'<time datetime="{moment.isoformat()}">{moment:{"%H:%M:%S" if today else "%Y-%m-%d %H:%M"}}</time>'


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
