"""Kills at random moments: agent or helper, with faults on the board, again and again over one helper."""

from __future__ import annotations

import random
import time

from benchmarks.crash_campaign import victims
from benchmarks.crash_campaign.children import CRASHED, ended, kill, spawn, wait_until
from benchmarks.crash_campaign.enumerated import (
    RESTORE_S,
    Row,
    Site,
    listens,
    nobody,
    put_all_back,
    stop,
)
from polythrottle_agent.privileged.client import HelperClient, HelperError

P_FAULT = 0.5
P_KILL_RESTORE = 0.2
P_AGENT = 0.5


def kill_at_random(site: Site, count: int, seed: int) -> Row:
    """`count` kills. After each: the faults are lifted, and the board has to be as it was."""
    row = Row(site.target.name, "agent or helper, at random")
    chance = random.Random(seed)
    for number in range(count):
        site.target.disturb(chance)
        site.fresh()
        _one_kill(site, row, chance, f"kill {number} of seed {seed}")
    return row


def _one_kill(site: Site, row: Row, chance: random.Random, where: str) -> None:
    site.leave_neighbours_changed(seed=1)
    helper = spawn(victims.helper(site.target, site.state, site.socket, nobody), site.log)
    if not wait_until(lambda: listens(site), RESTORE_S, step_s=0.03):
        raise RuntimeError(f"the helper does not start; see {site.log}")
    seed = chance.randrange(2**31)
    agent = spawn(victims.client(site.socket, seed, nobody, trials=victims.ENDLESS), site.log)
    if chance.random() < P_FAULT:
        time.sleep(chance.uniform(0.0, 0.1))
        site.target.inject(chance)
    time.sleep(chance.uniform(0.0, 0.3))
    row.kills += 1
    if chance.random() < P_AGENT:
        kill(agent)
        # A node with a fault shows nonsense, so faults are lifted before anybody looks.
        site.target.clear()
        row.lost += not site.originals_are_safe()
        _retry_now(site)
        site.judge(row, where, only_served=True)
        stop(helper)
        site.judge_neighbours(row, where)
        put_all_back(site, row, where)
    else:
        kill(helper)
        site.target.clear()
        row.lost += not site.originals_are_safe()
        site.judge_neighbours(row, where)
        if chance.random() < P_FAULT:
            site.target.inject(chance)
        _as_systemd(site, chance)
        site.target.clear()
        row.lost += not site.originals_are_safe()
        kill(agent)
        if site.put_back() == CRASHED:
            raise RuntimeError(f"the restore crashed; see {site.log}")
        site.judge(row, where)


def _as_systemd(site: Site, chance: random.Random) -> None:
    """ExecStopPost, with a fault of its own at times, and sometimes killed as well."""
    pid = spawn(victims.restore(site.target, site.state, nobody), site.log)
    if chance.random() < P_KILL_RESTORE:
        time.sleep(chance.uniform(0.0, 0.2))
        kill(pid)
    else:
        ended(pid)


def _retry_now(site: Site) -> None:
    """The helper tries again by itself after a second or more; asking for it saves the campaign the wait."""
    try:
        with HelperClient(site.socket, answer_s=60) as client:
            client.request("put_back", force=True)
    except HelperError as error:
        with site.log.open("a") as log:
            log.write(f"put_back: {error}\n")
