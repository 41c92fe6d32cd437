"""Is each guard in the Lua tested? Takes one away, runs the tests until one of them fails, and says which it was.

A guard is a line of ``store/lua`` with a comment ``-- guard: name`` at its end. `DETAILS` adds lines that are no guards but
matter as much: what is counted, what tokens are made of, who is woken. `EDITS` says how a guard is taken away where leaving
out its line, or taking its condition for false, would be another change than that.

    python tests/mutants.py [--jobs 2] [--redis-kind valkey] [names...]

Without names: all of them. Exits with 1 if one survives: then the guard is superfluous, or a test is missing. Who killed
which is remembered in ``tests/faults/results/mutants.json``, so that the next run asks that test first.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from swarm_infrastructure.store import Library, assemble
from swarm_infrastructure.testing import RedisServer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tests" / "faults" / "results" / "mutants.json"
GUARD = re.compile(r"^(?P<code>.*?)\s*-- guard: (?P<name>\w+)\s*$")

# Where the killer of a mutant is to be looked for first, by the beginning of its name: the longest one that fits decides.
# Then in the others, in this order.
LIKELY = {
    "test_claims.py": ("claim", "item", "gate", "most", "lane", "token"),
    "test_endings.py": ("end", "fail", "max"),
    "test_changes.py": ("change", "delete"),
    "test_submit.py": ("submit", "dedup", "section", "payload"),
    "test_leases.py": ("renew", "reap", "held"),
    "test_sketch.py": ("sketch",),
    "test_waiting.py": ("ring", "submit_delay_rings", "end_delay_rings"),
    "test_events.py": (),
    "test_registry.py": (),
    "test_locks.py": (),
    "test_queries.py": (),
    "test_news_board.py": (),
    "test_store.py": ("board",),
    "test_money.py": (
        "reserve", "settle", "release_sent", "mark", "expire", "alert", "gate_kept", "gate_of_money", "gate_window",
        "gates_opened", "limits", "admit", "slow", "money",
    ),
    "test_consensus.py": ("debate", "argue", "vote", "look", "forget"),
    "test_topics.py": (
        "topic", "entry", "trim", "publish", "open", "group", "take", "finish", "renew_seat", "replay", "redrive",
    ),
    "test_processor.py": (),
    "test_timers.py": ("tick",),
    "test_schema_registry.py": ("schema",),
    "test_message_bus.py": ("tell",),
    "test_circuit_breaker.py": ("breaker", "backend"),
    "test_steps.py": ("step", "answer", "delete_records"),
    "test_checkpoints.py": ("checkpoint",),
    "test_audit_whole.py": ("reap_lateness",),
    "test_retention.py": (
        "trim_begin", "trim_young", "trim_reader", "trim_gone", "trim_misfits", "trim_told", "trim_rows", "take_turn",
        "purge", "marks", "base", "forget_hashes",
    ),
    "test_money_retention.py": ("ledger", "prune"),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A library in which one thing is missing."""

    name: str
    file: str
    old: str
    new: str

    def edit(self, file: str, text: str) -> str:
        """What `assemble` calls with each file."""
        if file != self.file:
            return text
        if text.count(self.old) != 1:
            raise LookupError(
                f"mutant {self.name}: found {text.count(self.old)} times in {file}, needed once: {self.old!r}"
            )
        return text.replace(self.old, self.new)


# Guards whose line does more than to refuse: what to put for which part of it.
EDITS = {
    "lane_twice": ("not known", "true"),
    "claim_forged": (" and state.holder == '' and state.lane == lane.parts.name", ""),
    "reap_forged": (
        "not record or lane_of(record, record.holder ~= '' and record.origin or nil) ~= lane.parts.name",
        "not record",
    ),
    "purge_kept": (" and outlived(rules, record, now_ms)", ""),
    "marks_over": (" and tonumber(ends_ms) <= now_ms", ""),
    "ledger_young": ("id_parts(row[1]) < now_ms - keep_ms", "false"),
    "ledger_dropped": ("counters[i]", "true"),
    "prune_item": (" or redis.call('HEXISTS', keys[4], task) == 1", ""),
    "sketch_order": ("its_place > 0 and its_place < place", "true"),
    "fail_worn_out": (" or worn_out(rule.limits(rules, state.section), state)", ""),
    "gate_kept": ("not old or not gate_stands(context, old)", "true"),
    "alert_heard": ("if kind ~= 'unknown' then told", "do told"),
    "reserve_window": ("fits and reserve_one", "reserve_one"),
    "admit_calls": ("most_calls and calls + 1 > most_calls", "false"),
    "slow_down_longest": ("math.max(tonumber(until_ms), now_ms + tonumber(argv[2]))", "now_ms + tonumber(argv[2])"),
    "topic_partitions": (" and topic.partitions == tonumber(partitions)", ""),
    "redrive_once": ("if row then", "do"),
    "item_lane": (" or lane.becomes == '-'", ""),
}

CLOCK_SERVES = "if last < now_us then return token end"
RESETS = "if kind == 'moved' or kind == 'released' then record.attempts"
CRASH, VERSION = "record.crashes = plus(record.crashes, 1)", "record.version = plus(record.version, 1)"
CLAIMED = "local version, attempts = plus(state.version, 1), plus(state.attempts, 1)"
HELD, ENDED_FOR = (
    "stamp[1], stamp[2], stamp[3] = context.held, agent",
    "stamp[4], stamp[5], stamp[6] = context.tallies, agent",
)
GATES = "found[2 * i] or found[2 * i + 1] or found[1]"
ENDED_TOKEN = "state.token ~= token or state.holder == ''"
HELD_TOKEN = "record.token ~= token or record.holder == ''"

# No guards, but what they rest on: (file, what is there, what to put for it)
DETAILS = {
    # what goes and what is kept of it
    "marks_for_ever": ("purge_marks.lua", "ends_ms ~= '0' and ", ""),
    "marks_of_items": ("purge_marks.lua", "forget_mark(keys[2], id, page[i])", "local _"),
    "purge_held": ("purge_items.lua", "record.holder ~= '' or ", ""),
    "purge_answers": ("purge_items.lua", "own[#own + 1] = keys[k]", "local _"),
    "forget_hashes": ("55_trims.lua", "redis.call('HDEL', key, unpack(ids))", "local _"),
    "take_turn_once": ("take_turn.lua", "'NX', ", ""),
    "base_crash": ("trim_events.lua", "state.crashes = state.crashes + 1", "local _"),
    "base_worn_out": (
        "trim_events.lua",
        " or (kind == 'quarantined' and string.sub(event.reason, 1, 13) == 'lease ended (')",
        "",
    ),
    "base_attempt": ("trim_events.lua", "state.attempts = state.attempts + 1", "local _"),
    "base_hand_back": ("trim_events.lua", "math.max(0, state.attempts - 1)", "state.attempts"),
    "base_resets": ("trim_events.lua", "if RESETS[kind] then", "if false then"),
    "base_end": ("trim_events.lua", "state.holder = ''\n  end", "end"),
    "base_row": (
        "trim_events.lua",
        "row[4] ~= '' and row[4] or event.agent, row[4] ~= '' and row[5] or event.token",
        "event.agent, event.token",
    ),
    "base_gone": ("trim_events.lua", "redis.call('HDEL', context.base, unpack(gone))", "local _"),
    "base_misfit_version": ("trim_events.lua", " and plus(state.version, 1) == version", ""),
    "base_misfit_lane": ("trim_events.lua", " and state.lane == event.from", ""),
    "trim_told": ("55_trims.lua", "redis.call('XADD', events", "type('XADD', events"),
    "trim_rows": ("trim_events.lua", " or context.rows >= most then break", " then break"),
    "ledger_base_units": ("trim_ledger.lua", "was[unit] = was[unit] + sum[unit]", "was[unit] = sum[unit]"),
    "ledger_corrected_kept": ("trim_ledger.lua", "was[4] = math.max(was[4], sum[4])", "was[4] = sum[4]"),
    "prune_base": ("prune_counters.lua", "redis.call('HDEL', keys[3], unpack(gone))", "local _"),
    # halves of conditions
    "end_token_only": ("end_claims.lua", ENDED_TOKEN, "state.token ~= token"),
    "end_holder_only": ("end_claims.lua", ENDED_TOKEN, "state.holder == ''"),
    "held_token_only": ("60_claims.lua", HELD_TOKEN, "record.token ~= token"),
    "held_holder_only": ("60_claims.lua", HELD_TOKEN, "record.holder == ''"),
    # what is recorded for an item, and how a backend does
    "answer_place": ("65_answers.lua", "stage ~= '' and (stage .. ' ' .. token) or '- -'", "'- -'"),
    "answer_input": ("65_answers.lua", "if payload then redis.call('HSET', answers, input, payload) end", ""),
    "answer_input_first": ("65_answers.lua", " and redis.call('HEXISTS', answers, input) == 0", ""),
    "answer_ttl": ("65_answers.lua", "  redis.call('PEXPIRE', answers, ttl_ms)\n", ""),
    "delete_records": ("delete_item.lua", "{ unpack(keys, 11) }", "{}"),
    "breaker_forgotten": ("76_breakers.lua", "    redis.call('HDEL', key, name)\n", ""),
    "breaker_reopened": ("76_breakers.lua", "breaker.state == 'half_open' or breaker.failures", "breaker.failures"),
    "breaker_reset": ("76_breakers.lua", "      breaker = breakers.read(nil)\n    end", "    end"),
    "breaker_ticket_back": ("76_breakers.lua", "  if mine then table.remove(breaker.tickets, mine) end\n", ""),
    "breaker_kept": (
        "76_breakers.lua",
        "  if breaker then keep_breaker(breakers_key, breaker_name, breaker) end\n",
        "",
    ),
    "checkpoint_order": ("keep_checkpoint.lua", "math.max(now_us, last_us + 1)", "now_us"),
    "checkpoint_ttl": (
        "keep_checkpoint.lua",
        "math.max(redis.call('PTTL', keys[5]), tonumber(argv[4]))",
        "tonumber(argv[4])",
    ),
    "checkpoint_own_stage": ("keep_checkpoint.lua", "not mine and n >= ", "n >= "),
    "change_release_status": ("change_item.lua", "(record.status ~= rule.quarantine(rules) or ", "("),
    "change_release_ready": ("change_item.lua", " or rule.place(rules, section, status) == '-')", ")"),
    "claim_forged_holder": ("claim.lua", "state.holder == '' and state.lane", "state.lane"),
    "claim_forged_lane": ("claim.lua", " and state.lane == lane.parts.name then", " then"),
    "item_repeat_lease": ("claim_item.lua", " and due_ms > now_ms then -- guard: item_repeat", " then"),
    "item_repeat_token": ("claim_item.lua", "ask == request and given == record.token", "ask == request"),
    "claim_repeat_place": ("claim.lua", "tonumber(place) == i and ", ""),
    "claim_repeat_ends": ("claim.lua", "ended_ms or ends_text", "ends_text"),
    "dedup_for_ever": ("submit.lua", "ends_ms == '0' or ", ""),
    "dedup_lifetime": ("submit.lua", "tonumber(ends_ms) > context.now_ms", "true"),
    "delete_mark": ("delete_item.lua", "redis.call('HDEL', keys[6], record.dedup)", "local _"),
    "end_first_answer_quarantined": ("end_claims.lua", " or (kind == 'fail' and ending == 'quarantined')", ""),
    "end_answers_remembered": ("end_claims.lua", "endings .. ',' .. match(state.endings, '^[^,]*')", "endings"),
    "change_keeps_delay": ("change_item.lua", "if kind == 'updated' and waits_ms then", "if false then"),
    "board_clock": ("register_board.lua", "if offset then", "if false then"),
    "submit_delay_rings": (
        "submit.lua",
        "target.place ~= '-' and target.bell or nil",
        "not waits and target.place ~= '-' and target.bell or nil",
    ),
    "end_delay_rings": ("end_claims.lua", "entrants(changes, lane.timed, lane.bell)", "entrants(changes, lane.timed)"),
    # counters
    "end_crash_counted": ("60_claims.lua", CRASH, "local _"),
    "claim_attempt_counted": ("60_claims.lua", CLAIMED, CLAIMED.replace("plus(state.attempts, 1)", "state.attempts")),
    "claim_version_counted": ("60_claims.lua", CLAIMED, CLAIMED.replace("plus(state.version, 1)", "state.version")),
    "reap_failure_told": ("60_claims.lua", "redis.call('XADD', context.failures", "type('XADD', context.failures"),
    "reap_escalates": ("60_claims.lua", "  if row.why then", "  if false then"),
    "reap_escalates_worn_out_only": ("60_claims.lua", "  if row.why then", "  if true then"),
    "reap_first_word": ("60_claims.lua", "before and match(before, '\"at_ms\":(%d+)') or now_text", "now_text"),
    "step_of_others": ("record_step.lua", "if argv[2] ~= '' then", "if true then"),
    "reap_version_counted": ("60_claims.lua", f"{CRASH}\n  {VERSION}", CRASH),
    "end_version_counted": (
        "end_claims.lua",
        "local version, attempts, crashes = plus(state.version, 1)",
        "local version, attempts, crashes = state.version",
    ),
    "change_version_counted": ("change_item.lua", VERSION, "local _"),
    "delete_version_counted": ("delete_item.lua", VERSION, "local _"),
    "end_hand_back_not_counted": ("end_claims.lua", "tonumber(attempts) - 1", "tonumber(attempts)"),
    "end_complete_resets": ("end_claims.lua", "attempts, crashes = '0', '0'", "local _"),
    "change_move_resets": ("change_item.lua", RESETS, "if kind == 'released' then record.attempts"),
    "change_release_resets": ("change_item.lua", RESETS, "if kind == 'moved' then record.attempts"),
    "claim_held_counted": ("60_claims.lua", f"{HELD}, 1", "local _"),
    "reap_held_counted": ("60_claims.lua", "count(changes, context.held, agent, -1)", "local _"),
    "end_held_counted": ("end_claims.lua", f"{HELD}, -1", HELD + ", 0"),
    "end_tallied": ("end_claims.lua", f"{ENDED_FOR} .. '|' .. kind, 1", "local _"),
    "claim_most_in_call": ("claim.lua", "promised[id] = (promised[id] or 0) + n", "local _"),
    "reap_lateness_told": ("60_claims.lua", "late_ms = context.now_ms - ended_ms", "late_ms = 0"),
    "reap_limit": ("60_claims.lua", "limit = limit - take_back(", "local _ = take_back("),
    "reap_error_kept": (
        "60_claims.lua",
        "for _, row in ipairs(context.lapsed or {}) do",
        "for _, row in ipairs({}) do",
    ),
    "fail_error_kept": ("end_claims.lua", "if group.error ~= '' then", "if false then"),
    "fail_errors_bounded": ("50_changes.lua", "while #text > ERROR_BYTES do", "while false do"),
    "submit_created_kept": (
        "50_changes.lua",
        "if byte(own) == BAR and previous ~= '' then",
        "if false then",
    ),
    "counted_for_each": ("50_changes.lua", "stamp[k + 2] * stamp.times", "stamp[k + 2]"),
    # what items have in common
    "event_rows_alike": ("50_changes.lua", "if its == stamp and previous == before then", "if i > 1 then"),
    "event_rows_one_stamp": ("50_changes.lua", "if its == stamp and previous", "if previous"),
    "event_rows_one_event": (
        "50_changes.lua",
        "its == stamp and previous == before then",
        "its == stamp then",
    ),
    "end_ends_read": (
        "end_claims.lua",
        "redis.call('ZCOUNT', group.from.timed, '-inf', whole(context.now_ms)) == 0",
        "true",
    ),
    # places
    "claim_leaves_line": ("claim.lua", "redis.call('ZREMRANGEBYRANK', lane.line, '0', whole(many - 1))", "local _"),
    "claim_leaves_each_line": ("claim.lua", "leave_line(lane, (at[k] - 1) / 2)", "leave_line(lane, 1)"),
    "claim_line_of_one": (
        "claim.lua",
        "if ids[1] then leave_line(lane, #ids) end",
        "if ids[1] then leave_line(lane, 1) end",
    ),
    "reap_leaves_timed": (
        "60_claims.lua",
        "  take_out(changes, lane.timed, id)\n  put_in(changes, line,",
        "  put_in(changes, line,",
    ),
    "end_leaves_timed": ("end_claims.lua", "stamp.out = leavers(changes, group.from.timed)", "local _"),
    "end_delay": ("end_claims.lua", "if lane.ready and delay_ms > 0 then", "if false then"),
    "submit_delay": ("submit.lua", "delay_ms ~= '0' and target.place ~= '-'", "false"),
    "submit_delay_where_ready": ("submit.lua", "delay_ms ~= '0' and target.place ~= '-'", "delay_ms ~= '0'"),
    "item_leaves_line": ("claim_item.lua", "redis.call('ZREM', lane.line, id)", "local _"),
    "claim_priority": ("40_record.lua", "return priority .. (", "return '0' .. ("),
    "claim_order": (
        "40_record.lua",
        "(zeros[#seq] or '') .. seq",
        "'000000000000000'",
    ),
    "claim_order_over_lanes": ("claim.lua", "scores[k] < scores[first]", "scores[k] > scores[first]"),
    "claim_dealt_in_turn": (
        "claim.lua",
        "if round <= agent.n and next_one <= many then\n        hands[i][round]",
        "while #hands[i] < agent.n and next_one <= many do\n        hands[i][#hands[i] + 1]",
    ),
    # tokens
    "token_after_the_last": ("60_claims.lua", CLOCK_SERVES, "if last then return token end"),
    "token_by_the_clock": ("60_claims.lua", CLOCK_SERVES, ""),
    "token_grows": ("60_claims.lua", "token = whole(last + 1)", "token = whole(last)"),
    "token_kept": ("60_claims.lua", "redis.call('SET', fence, token, 'GET')", "redis.call('GET', fence)"),
    "token_kept_after_the_last": ("60_claims.lua", "redis.call('SET', fence, token)\n", "local _\n"),
    # gates
    "gate_of_agent": ("60_claims.lua", GATES, "found[2 * i + 1] or found[1]"),
    "gate_of_role": ("60_claims.lua", GATES, "found[2 * i] or found[1]"),
    "gate_of_all": ("60_claims.lua", GATES, "found[2 * i] or found[2 * i + 1]"),
    "renew_never_shortens": ("renew.lua", "'XX', 'GT', ", "'XX', "),
    # doorbells
    "ring_when_ready": ("50_changes.lua", "if bell then ring(bell) end", "local _"),
    "ring_once": ("50_changes.lua", "if redis.call('LLEN', bell) == 0 then", "do"),
    "ring_when_work_is_left": ("claim.lua", "ring(lane.bell) else", "local _ else"),
    "ring_off_when_none_is_left": ("claim.lua", "redis.call('DEL', lane.bell)", "local _"),
    "ring_for_the_next_lease": ("claim.lua", "if not due_ms or ends_ms < due_ms then due_ms = ends_ms end", ""),
    "ring_for_the_next_due": ("60_claims.lua", "if due_ms and (not next_ms or due_ms < next_ms) then", "if false then"),
    # money
    "money_gate_over": ("reserve.lua", "not old or not gate_stands(context, old)", "not old"),
    "money_gate_role": ("reserve.lua", "if string.match(scope, '^role:') then who = scope end", "local _"),
    "money_gate_pauses": ("reserve.lua", "who ~= '' and found.breach == 'pause'", "who ~= ''"),
    "money_gate_resumes": ("reserve.lua", "letter == 'h' and windows[2] or letter == 'd' and windows[4] or '0'", "'0'"),
    "money_gate_needed": ("70_money.lua", "+ needed > most", "> most"),
    "money_gate_unit": ("70_money.lua", "unit == 'usd' and 1 or unit == 'tokens' and 2 or 3", "1"),
    "money_gate_of_limits": ("set_limits.lua", "context.freed = true", "local _"),
    "money_gate_of_a_release": (
        "70_money.lua",
        "touch(context, reservation.fields)\n  context.freed = true",
        "touch(context, reservation.fields)",
    ),
    "money_gate_of_a_settlement": (
        "70_money.lua",
        "table.concat(told, ' '))\n  context.freed = true",
        "table.concat(told, ' '))",
    ),
    "money_freed_by_reserve": ("reserve.lua", "expire(context, EXPIRE_LIMIT)", "local _"),
    "money_hold_freed": ("70_money.lua", "    if held then", "    if false then"),
    "money_hold_prolonged": (
        "settle.lua",
        "context.now_ms + tonumber(argv[at + 1]))\n  return { 'sent' }",
        "context.now_ms)\n  return { 'sent' }",
    ),
    "money_corrected": ("settle.lua", "usd - reservation.usd, tokens", "usd, tokens"),
    "money_corrected_tokens": ("settle.lua", "tokens - reservation.tokens,", "tokens,"),
    "money_corrected_requests": ("settle.lua", "requests - reservation.requests", "requests"),
    "money_forgotten": ("70_money.lua", "redis.call('HDEL', context.reservations, id)", "local _"),
    "money_unknown_kept": ("70_money.lua", "reservation.state = 'unknown'", "local _"),
    "money_alert_remembered": ("70_money.lua", "counters[i][7] = level", "local _"),
    "money_rate_window": ("75_rates.lua", "now_ms >= began + window_ms or now_ms < began", "false"),
    "money_rate_alone": ("75_rates.lua", "most_tokens and calls > 0 and", "most_tokens and"),
    # debates
    "debate_weight": ("vote_debate.lua", "debate.weighted == '1' and tonumber(confidence) or 1000", "1000"),
    "debate_weight_counted": ("vote_debate.lua", "debate.weighted == '1' and tonumber", "tonumber"),
    "debate_decided_at_its_deadline": (
        "80_debates.lua",
        "'deadline', tonumber(debate.deadline_ms)",
        "'deadline', context.now_ms",
    ),
    "debate_out_with_full_confidence": ("80_debates.lua", "local out = (expected - votes) * 1000", "local out = 0"),
    "debate_second_of_all": ("80_debates.lua", "second = math.max(second, weight)", "local _"),
    "debate_second_is_the_last_first": (
        "80_debates.lua",
        "second, best, leaders = math.max(best, 0),",
        "best, leaders =",
    ),
    "debate_leaves_the_open": ("80_debates.lua", "redis.call('ZREM', context.open, context.id)", "local _"),
    "debate_kept_as_long_as_asked": ("80_debates.lua", "context.now_ms + tonumber(debate.keep_ms)", "context.now_ms"),
    "debate_closed_by_one": ("80_debates.lua", "redis.call('HGET', context.key, 'closer') == context.request", "true"),
    "debate_invites_whole_names": ("80_debates.lua", "' ' .. name .. ' ', 1, true", "name, 1, true"),
    "debate_no_role_is_no_name": ("80_debates.lua", "return name ~= '' and string.find", "return string.find"),
    "debate_due_are_told": (
        "open_debate.lua",
        "debating.answer(context, 'stands', due)",
        "debating.answer(context, 'stands', 0)",
    ),
    "vote_settles": ("vote_debate.lua", "debating.close_decided(context)", "local _"),
    "vote_same_choice": ("vote_debate.lua", "tonumber(choice) == option and ", ""),
    "vote_same_confidence": ("vote_debate.lua", " and sure == confidence", ""),
    "vote_closes_what_is_due": ("vote_debate.lua", "debating.close_due(context)", "local _"),
    "argue_closes_what_is_due": ("argue_debate.lua", "debating.close_due(context)", "local _"),
    "look_closes_what_is_due": ("look_debate.lua", "debating.close_due(context)", "local _"),
    "forget_all_of_it": ("forget_debate.lua", "'DEL', keys[4], keys[5], keys[6]", "'DEL', keys[4]"),
    # events
    "change_event_request": ("50_changes.lua", "'request', changes.request", "'request', ''"),
    "change_found_far_back": ("50_changes.lua", "local FARTHEST = 100", "local FARTHEST = 3"),
    "sketch_band_bounded": ("sketch.lua", "if not mine and n < BAND_IDS then", "if not mine then"),
    # topics
    "take_token_by_the_clock": (
        "take.lua",
        "math.max(tonumber(known[2] or 0) + 1, now_us)",
        "tonumber(known[2] or 0) + 1",
    ),
    "take_attempt_counted": ("take.lua", "seat.head, seat.used = id, used + 1", "seat.head, seat.used = id, used"),
    "take_crash_counted": ("take.lua", "seat.holder == '-' and 0 or 1", "0"),
    "take_leaving_not_counted": ("take.lua", "seat.holder == '-' and 0 or 1", "1"),
    "take_head_alone_counted": ("take.lua", "first and (seat.head == id and seat.used or unknown) or 0", "unknown"),
    "take_pending_first": (
        "take.lua",
        "until #found == 0 or #rows >= n\nend\n\nlocal function take_new",
        "until true\nend\n\nlocal function take_new",
    ),
    "take_new_head": ("take.lua", "if #rows == 1 then seat.head, seat.used = row[1], 1 end", "local _"),
    "take_due": ("take.lua", "due_ms and whole(due_ms - now_ms) or ''", "''"),
    "take_room": ("take.lua", "elseif #hands < room then", "else"),
    "finish_gives_up": (
        "finish.lua",
        "if ending.leave == '1' then leave_seat(seat, '-', 0, 0) end\n  return { 'done', '' }",
        "return { 'done', '' }",
    ),
    "finish_gives_up_dead": (
        "finish.lua",
        "if ending.leave == '1' then leave_seat(seat, '-', 0, 0) end\n  return { 'dead'",
        "return { 'dead'",
    ),
    "finish_delay": ("finish.lua", "context.now_ms + tonumber(ending.delay_ms)", "0"),
    "finish_remembered": ("finish.lua", "seat.ended = table.concat", "local _ = table.concat"),
    "finish_used_kept": ("finish.lua", "leave_seat(seat, ending.entry, used, ", "leave_seat(seat, ending.entry, 0, "),
    "finish_free_used": ("finish.lua", "tonumber(ending.attempts), 0)", "1, 0)"),
    "finish_acknowledged": (
        "finish.lua",
        "redis.call('XACK', ending.stream, context.group, ending.entry)\n  for",
        "for",
    ),
    "topic_bury_acknowledged": (
        "80_topics.lua",
        "redis.call('XACK', stream, group, entry)\n  return add_entry",
        "return add_entry",
    ),
    "renew_seat_never_shortens": (
        "renew_partitions.lua",
        "math.max(seat.until_ms, now_ms + tonumber(argv[2]))",
        "now_ms + tonumber(argv[2])",
    ),
    "replay_takes_seats": ("replay_group.lua", "redis.call('HDEL', keys[2], whole(i - 3))", "local _"),
    "redrive_gone": ("redrive.lua", "redis.call('XDEL', keys[3], argv[i])", "local _"),
    "redrive_for_its_group": ("redrive.lua", "fields[#fields + 1] = facts.group", "fields[#fields + 1] = nil"),
    "finish_all_messages": (
        "finish.lua",
        "publish_message(message, context.now_ms, true)",
        "publish_message(message, context.now_ms)",
    ),
    "tick_all_messages": ("tick.lua", "publish_message(message, now_ms, true)", "publish_message(message, now_ms)"),
    "publish_remembered": ("80_topics.lua", "redis.call('HSET', message.topic.recent[1], message.id, ", "local _ = ("),
    "publish_older_ids": ("80_topics.lua", " or redis.call('HGET', topic.recent[2], id) or nil", ""),
    "publish_ids_forgotten": ("80_topics.lua", "redis.call('UNLINK', b)", "local _"),
    "publish_ids_forgotten_both": (
        "80_topics.lua",
        "if now_ms - began_a >= 2 * RECENT_MS then redis.call('UNLINK', a) end",
        "",
    ),
    "publish_hint": ("80_topics.lua", "redis.call('PUBLISH', topic.channel, '1')", "local _"),
    "trim_age": ("trim_topic.lua", "now_ms - topic.keep_ms", "now_ms"),
    "trim_share": ("trim_topic.lua", "redis.call('XLEN', stream) - share", "redis.call('XLEN', stream)"),
    "group_lag_known": ("80_topics.lua", "if behind <= COUNTED then read", "if false then read"),
    "topic_laggard": ("80_topics.lua", "if before[group.name] > most then", "if most < 0 then"),
    "topic_room_made": ("80_topics.lua", "if not topic.cleared then", "if false then"),
    "open_settings_kept": ("open_topic.lua", "old and old.most or 1000000", "1000000"),
    "tick_moves_on": ("tick.lua", "redis.call('HSET', keys[3], argv[1], argv[3] .. '|' .. text)", "local _"),
    "tick_of_a_changed_timer": ("read_timers.lua", "(last_ms or whole(now_ms)) .. '|'", "whole(now_ms) .. '|'"),
    "sketch_place_kept": ("sketch.lua", "local laid = place > 0", "local laid = false"),
}


def _sources() -> dict[str, str]:
    texts: dict[str, str] = {}

    def note(file: str, text: str) -> str:
        texts[file] = text
        return text

    assemble(note)
    return texts


def _without_guard(name: str, file: str, line: str, code: str) -> Mutant:
    if name in EDITS:
        old, new = EDITS[name]
        assert code.count(old) == 1, f"guard {name}: its edit does not fit its line any more: {code.strip()}"
        return Mutant(name, file, line, code.replace(old, new))
    if found := re.fullmatch(r"(\s*(?:else)?if ).* then", code):  # the body is on the next lines
        return Mutant(name, file, line, f"{found[1]}false then")
    return Mutant(name, file, line, "")


@lru_cache(maxsize=1)
def mutants() -> dict[str, Mutant]:
    """Every mutant by name: one for each guard in the Lua, then the details."""
    found: dict[str, Mutant] = {}
    for file, text in _sources().items():
        for line in text.splitlines():
            if match := GUARD.match(line):
                name = match["name"]
                assert name not in found, f"two guards are called {name}"
                found[name] = _without_guard(name, file, line, match["code"])
    unknown = set(EDITS) - set(found)
    assert not unknown, f"there are edits for guards that are gone: {unknown}"
    for name, (file, old, new) in DETAILS.items():
        assert name not in found, f"a guard and a detail are both called {name}"
        found[name] = Mutant(name, file, old, new)
    return found


def mutant(name: str) -> Library:
    """The function library without the guard *name*."""
    try:
        return assemble(mutants()[name].edit)
    except KeyError:
        raise LookupError(f"no mutant {name!r}; there are: {', '.join(mutants())}") from None


# --- the hunt ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    name: str
    killed_by: str  #: the test; "" if it survived
    seconds: float


def _tests_for(name: str) -> list[str]:
    fitting = [
        (len(prefix), file) for file, prefixes in LIKELY.items() for prefix in prefixes if name.startswith(prefix)
    ]
    likely = max(fitting, default=(0, next(iter(LIKELY))))[1]
    integration = [f"tests/integration/{file}" for file in dict.fromkeys((likely, *LIKELY))]
    properties = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/properties").glob("test_*.py"))
    return integration + properties


def _first_failure(name: str, tests: list[str], kind: str) -> str:
    """The test that fails on this mutant, or ""."""
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-rfE", "--timeout=60", "-p", "no:randomly",
        "--redis-kind", kind, "--mutant", name, *tests,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return failed[1]
    if any("::" in test for test in tests):
        return ""  # the test of the last run has another name now
    raise RuntimeError(
        f"mutant {name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )


def hunt(name: str, last_killer: str, kind: str) -> Outcome:
    """Run tests against one mutant until one fails: the one that killed it last time, then all."""
    started = time.monotonic()
    killer = _first_failure(name, [last_killer], kind) if last_killer else ""
    killer = killer or _first_failure(name, _tests_for(name), kind)
    return Outcome(name, killer, round(time.monotonic() - started, 1))


def _check_that_they_load(names: list[str], kind: str) -> None:
    """A mutant that is no Lua at all would be killed by every test, and tell nothing."""
    from redis import Redis

    with RedisServer(kind) as server, Redis.from_url(server.url) as redis:
        for name in names:
            redis.function_load(mutant(name).source, replace=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Take each guard of the Lua away and see whether a test notices.")
    parser.add_argument("--jobs", type=int, default=2, help="how many to hunt at once (default: 2)")
    parser.add_argument("--redis-kind", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("names", nargs="*", help="guards or details; all of them by default")
    options = parser.parse_args()
    names = options.names or list(mutants())
    _check_that_they_load(names, options.redis_kind)
    known = json.loads(RESULTS.read_text())["mutants"] if RESULTS.exists() else {}

    width = max(map(len, names))
    print(f"{'guard':{width}} | killed by")
    killed = 0
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            hunts = [
                pool.submit(hunt, name, known.get(name, {}).get("killed_by", ""), options.redis_kind) for name in names
            ]
            for each in hunts:
                outcome = each.result()
                killed += bool(outcome.killed_by)
                print(f"{outcome.name:{width}} | {outcome.killed_by or 'SURVIVED'}", flush=True)
                known[outcome.name] = {"killed_by": outcome.killed_by, "seconds": outcome.seconds}
    finally:
        _remember(known)
    print(f"{killed}/{len(names)} killed")
    return 0 if killed == len(names) else 1


def _remember(outcomes: dict[str, dict[str, object]]) -> None:
    known = {name: outcomes[name] for name in mutants() if name in outcomes}
    survivors = [name for name, row in known.items() if not row["killed_by"]]
    report = {"killed": len(known) - len(survivors), "total": len(known), "survivors": survivors, "mutants": known}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
