"Schedules: the arithmetic of times, and calls that are made once though processes are killed and machines restarted"
import configparser, json, os, re, signal, subprocess, sys, time
from datetime import datetime, timedelta
from zoneinfo import TZPATH, ZoneInfo

import numpy as np, psutil, pytest
from conftest import wait_for
from helpers import Child, root, run
from hypothesis import given, settings, strategies as st

import parkit as pk
from parkit.calls import _ensure
from parkit.ledger import _RECORD, _ledger
from parkit.scheduling import _agenda
from parkit.transactions import read, write
from parkit.workers import _Team, is_supervised
from task_helpers import kill_pool

BERLIN = ZoneInfo('Europe/Berlin')
HOUR, DAY = 3600, 86400


# --- when

def stamps(times): return [f'{t:%m-%d %H:%M %z}' for t in times]

def _has_finished(schedule):
    "Whether its last call has: it is noted before it is made"
    try: return schedule.last.status == 'finished'
    except pk.ObjectNotFoundError: return False

@pytest.mark.parametrize('trigger, start, expected', [
    (pk.Periodic(datetime(2026, 3, 27, 2, 30), pk.Frequency.Day, tz=BERLIN), datetime(2026, 3, 28), ['03-28 02:30 +0100', '03-29 03:30 +0200', '03-30 02:30 +0200']),  # there is no 02:30 on the 29th
    (pk.Periodic(datetime(2026, 10, 24, 2, 30), pk.Frequency.Day, tz=BERLIN), datetime(2026, 10, 24), ['10-24 02:30 +0200', '10-25 02:30 +0200', '10-26 02:30 +0100']),  # two of them
    (pk.Periodic(datetime(2026, 3, 28, 23), pk.Frequency.Hour, 2, tz=BERLIN), datetime(2026, 3, 29), ['03-29 01:00 +0100', '03-29 04:00 +0200', '03-29 06:00 +0200']),  # a stopwatch
    (pk.Periodic(datetime(2024, 2, 29), pk.Frequency.Year, tz='UTC'), datetime(2026, 1, 1), ['02-28 00:00 +0000', '02-28 00:00 +0000', '02-29 00:00 +0000']),
    (pk.Periodic(datetime(2026, 1, 31), pk.Frequency.Month, 2, tz='UTC'), datetime(2026, 2, 1), ['03-31 00:00 +0000', '05-31 00:00 +0000', '07-31 00:00 +0000']),
    (pk.Periodic(datetime(2026, 1, 5, 9), pk.Frequency.Week, tz=BERLIN), datetime(2026, 3, 25), ['03-30 09:00 +0200', '04-06 09:00 +0200', '04-13 09:00 +0200']),
    (pk.Cron('30 2 * * *', tz=BERLIN), datetime(2026, 3, 28, 12), ['03-29 03:00 +0200', '03-30 02:30 +0200', '03-31 02:30 +0200']),
    (pk.Cron('30 2 * * *', tz=BERLIN), datetime(2026, 10, 24, 12), ['10-25 02:30 +0200', '10-26 02:30 +0100', '10-27 02:30 +0100']),
    (pk.Cron('0 * * * *', tz=BERLIN), datetime(2026, 10, 25, 1, 30), ['10-25 02:00 +0200', '10-25 02:00 +0100', '10-25 03:00 +0100']),
    (pk.Cron('0 0 L * *', tz='UTC'), datetime(2026, 2, 1), ['02-28 00:00 +0000', '03-31 00:00 +0000', '04-30 00:00 +0000']),
])
def test_times(trigger, start, expected): assert stamps(pk.upcoming(trigger, 3, start=start)) == expected


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(pk.Frequency)), st.integers(1, 40), st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), st.floats(-1e8, 1e8),
       st.sampled_from(['UTC', 'Europe/Berlin', 'America/Santiago', 'Australia/Lord_Howe']))
def test_the_next_time_is_the_first_one_after(frequency, period, start, offset, tz):
    trigger = pk.Periodic(start, frequency, period, tz=tz)
    anchor = start.replace(tzinfo=ZoneInfo(tz)).timestamp()
    moment = anchor + (offset if frequency > pk.Frequency.Minute else offset/1e4)
    found = trigger.after(moment, 0)
    assert found > moment and found >= anchor
    assert trigger.after(found - 1e-3, 0) == pytest.approx(found)  # nothing between
    if found > anchor: assert trigger.after(moment - 1e-3, 0) <= found
    later = trigger.after(found, 0)
    assert later > found
    if frequency >= pk.Frequency.Day and start.hour not in (0, 1, 2, 3, 23):
        assert datetime.fromtimestamp(later, ZoneInfo(tz)).time() == start.time()


@pytest.mark.parametrize('tz', ['Asia/Tokyo', ':Asia/Tokyo', f'{TZPATH[0]}/Asia/Tokyo', f':{TZPATH[0]}/Asia/Tokyo'])
def test_the_zone_of_the_machine(monkeypatch, tz):
    "As `TZ` names it, or the file that it names"
    if tz.strip(':').startswith('/') and not os.path.exists(tz.strip(':')): pytest.skip('no such file')
    monkeypatch.setenv('TZ', tz)
    assert stamps(pk.upcoming(pk.Cron('0 3 * * *'), 1, start=datetime(2026, 1, 1))) == ['01-01 03:00 +0900']

def test_a_zone_of_the_machine_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv('TZ', 'CET-1CEST')
    with pytest.raises(pk.ScheduleError, match="no time zone 'CET-1CEST' here"): pk.Cron('0 3 * * *')

def test_a_period_may_be_a_whole_number_of_any_type():
    found = pk.upcoming(pk.Periodic(datetime(2026, 1, 31), pk.Frequency.Month, 2.0, tz='UTC'), 2, start=datetime(2026, 2, 1))
    assert stamps(found) == ['03-31 00:00 +0000', '05-31 00:00 +0000']
    assert pk.Periodic(period=np.int64(2)) == pk.Periodic(period=2.0) == pk.Periodic(period=2)

def test_triggers_are_equal_by_what_they_say():
    assert pk.Cron('0 3 * * *', tz='UTC') == pk.Cron('0 3 * * *', tz=ZoneInfo('UTC')) != pk.Cron('0 4 * * *', tz='UTC')
    assert pk.Periodic(max_times=3) == pk.Periodic('now', pk.Frequency.Second, 1, max_times=3)


# --- calls

def make_task():
    "A task that counts its runs"
    @pk.task
    def report(value=None):
        runs = pk.Array('runs')
        runs.append(value)
        return len(runs)
    return report

def runs(): return list(pk.Array('runs'))

def later(hours=24): return pk.Periodic(datetime.now(BERLIN) + timedelta(hours=hours), pk.Frequency.Day, tz=BERLIN)

def traces(site):
    "The ids of all calls in the ledger"
    ledger = _ledger(site)
    return [key.decode() for key, _ in read(ledger._store, lambda txn, zero_copy: list(ledger._scan(txn, _RECORD)))]


def test_a_schedule_calls_as_often_as_it_is_to(site):
    s = make_task().schedule(pk.Periodic(start='now', frequency=pk.Frequency.Second, period=1, max_times=3), 7)
    assert wait_for(lambda: len(runs()) == 3)
    assert wait_for(lambda: s.next_run is None) and s.count == 3 and runs() == [7, 7, 7] and pk.schedules() == [] and s.last.result == 3

def test_a_schedule_that_has_ended_cannot_be_paused_and_resumed(site):
    s = make_task().schedule(pk.Periodic(later().start, pk.Frequency.Day, max_times=1, tz=BERLIN))
    _agenda(site).step(time.time() + DAY + 1)
    s.pause()
    s.resume()
    assert s.next_run is None and not s.paused and s.count == 1 and pk.schedules() == []

def test_the_next_call_runs_the_new_code(site):
    s = make_task().schedule(later())
    @pk.task
    def report(value=None): return 'new'
    _agenda(site).step(time.time() + DAY + 1)
    assert s.last.result == 'new'

def test_big_arguments_and_references(site):
    d = pk.Dict('d')
    @pk.task
    def total(array, d): d['sum'] = float(array.sum())
    s = total.schedule(later(), np.ones(200_000), d)
    _agenda(site).step(time.time() + DAY + 1)
    assert s.last.result is None and d['sum'] == 200_000
    assert total.unschedule() == 1
    assert not pk.check(site)

def test_schedules_lie_in_a_durable_namespace(site):
    make_task().schedule(later())
    assert site.store('_schedules', True).is_durable() and not [n for n in pk.namespaces() if n.startswith('_')]

def test_another_process_sees_and_pauses_them(site):
    s = make_task().schedule(later(), 1)
    assert run(site, '''
        s, = pk.schedules()
        s.pause()
        say([s.task, s.paused, s.next_run, pk.bind_task('report').unschedule()])
    ''') == ['task/report', True, None, 1]
    assert not s.exists and pk.schedules() == []
    with pytest.raises(pk.ObjectNotFoundError, match='was unscheduled'): s.next_run

def test_a_change_of_an_argument_makes_no_second_schedule(site):
    d, report = pk.Dict('d'), make_task()
    first = report.schedule(later(), d)
    d['x'] = 1
    assert report.schedule(first.trigger, d) == first and len(pk.schedules()) == 1
    assert report.schedule(first.trigger, 2) != first

def test_a_task_that_is_gone_ends_its_schedule(site):
    report = make_task()
    s = report.schedule(later())
    report.drop()
    _agenda(site).step(time.time() + DAY + 1)
    assert s.next_run is None

def test_no_overlap(site):
    pk.Pool().resize(2)
    @pk.task
    def wait(): pk.wait_until(lambda: 'go' in pk.Dict('d'))
    d, agenda, now = pk.Dict('d'), _agenda(site), time.time()
    skips, waits = wait.schedule(later()), wait.schedule(pk.Periodic(later().start, pk.Frequency.Day, tz=BERLIN, catch_up='all'))
    def step(at):
        "A turn of the agenda, after which a supervisor wakes the workers"
        due = agenda.step(at)
        _ensure(site)
        return due
    assert [step(now + DAY*n + 60) and (skips.count, waits.count) for n in (1, 2, 3)] == [(1, 1), (1, 1), (1, 1)]
    assert step(now + DAY*3 + 60) == pytest.approx(now + DAY*3 + 61)  # looks again: one waits for the other
    d['go'] = True
    assert wait_for(lambda: skips.last.done and waits.last.done)
    for n in (3, 4): step(now + DAY*n + 60); waits.last.result
    assert (skips.count, waits.count) == (2, 3)

@pytest.mark.parametrize('catch_up, made', [('skip', 0), ('one', 1), ('all', 5)])
def test_catch_up_decides_about_missed_calls(site, catch_up, made):
    s, agenda, now = make_task().schedule(pk.Periodic(later().start, pk.Frequency.Day, tz=BERLIN, catch_up=catch_up, overlap=True)), _agenda(site), time.time()
    agenda.step(now + DAY*5 + HOUR*2)
    assert s.count == made
    agenda.step(now + DAY*5 + HOUR*2)
    assert s.count == made  # once is enough

def test_many_processes_look_at_the_clock_and_one_calls(site):
    pk.Pool().stop()
    s = make_task().schedule(later())
    pk.Pool().stop()
    code = '''
        from parkit.scheduling import _agenda
        agenda = _agenda(site)
        say()
        hear()
        for n in range(5): agenda.step(float(sys.argv[2]) + n*86400)
        say()
    '''
    children = [Child(site, code, time.time() + DAY + 1) for _ in range(4)]
    try:
        for c in children: c.hear()
        for c in children: c.say()
        for c in children: c.hear(); c.wait()
    finally:
        for c in children: c.__exit__()
    assert 1 <= s.count <= 5 and len(traces(site)) == s.count


# --- death

KILLED = {
    'before the claim is committed': "Agenda._put = lambda *args: os.kill(os.getpid(), signal.SIGKILL)",
    'after the claim': "Agenda.deliver = lambda *args: os.kill(os.getpid(), signal.SIGKILL)",
    'before the call is queued': "Agenda._submit = lambda *args: os.kill(os.getpid(), signal.SIGKILL)",
    'after it is queued, before that is noted': "Agenda._delivered = lambda *args: os.kill(os.getpid(), signal.SIGKILL)",
}

@pytest.mark.parametrize('where', KILLED)
def test_killed_while_it_makes_a_call(site, where):
    s = make_task().schedule(later())
    pk.Pool().stop()
    moment = time.time() + DAY + 1
    with Child(site, f'''
        from parkit import scheduling
        Agenda = scheduling._Agenda
        {KILLED[where]}
        scheduling._agenda(site).step({moment})
    ''') as child: assert child.process.wait(60) == -signal.SIGKILL
    for _ in range(3): _agenda(site).step(moment + 1)
    assert s.count == 1 and len(traces(site)) == 1 and _ledger(site).count_queued() == 1
    assert s.last.result == 1
    _agenda(site).step(moment + 2)
    assert len(traces(site)) == 1 and runs() == [None]

@pytest.mark.parametrize('where', [where for where in KILLED if 'before the claim' not in where])
def test_the_supervisor_is_killed_while_it_makes_a_call(site, where, tmp_path):
    "The supervisor itself, by a module that its interpreter loads at start: killed in its first call, not in its later life"
    (tmp_path/'sitecustomize.py').write_text(f'''
import os, signal, sys
if 'parkit.workers' in ' '.join(sys.orig_argv) and not os.path.exists({str(tmp_path/"killed")!r}):
    import parkit.scheduling
    Agenda = parkit.scheduling._Agenda
    {KILLED[where].replace("os.kill", f"open({str(tmp_path/'killed')!r}, 'w').close() or os.kill")}
''')
    with Child(site, '''
        @pk.task
        def report(value=None): pk.Array('runs').append(value)
        s = report.schedule(pk.Periodic(max_times=2), 1)
        say()
        hear()
        pk.Pool().start()
        say()
    ''', PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', ''), os.getcwd()])) as child:
        child.hear()
        assert wait_for((tmp_path/'killed').exists)
        child.say()
        child.hear()
        child.wait()
    s, = pk.schedules(ended=True)
    assert wait_for(lambda: s.count == 2 and len(runs()) >= 2)
    assert wait_for(lambda: _has_finished(s)) and runs() == [1, 1] and len(traces(site)) == 2

def test_a_supervisor_that_is_killed_is_brought_back(site):
    s = make_task().schedule(pk.Periodic(frequency=pk.Frequency.Second, period=1))
    assert wait_for(lambda: s.count >= 1 and _has_finished(s))
    os.kill(_Team(site).supervisor, signal.SIGKILL)  # a worker sees it
    count = s.count
    assert wait_for(lambda: s.count >= count + 2)
    kill_pool(pk.Pool())  # nobody does
    count = s.count
    assert pk.bind_task('report')().result
    assert wait_for(lambda: s.count >= count + 2)
    s.pause()

def test_the_supervisor_stays_while_something_is_scheduled(site):
    pk.Pool().idle_timeout = 0.1
    s = make_task().schedule(later())
    pid = _Team(site).supervisor
    cpu = psutil.Process(pid).cpu_times()
    assert not wait_for(lambda: not is_supervised(site), 1.5)
    used = psutil.Process(pid).cpu_times()
    assert used.user + used.system - cpu.user - cpu.system < 0.5  # it sleeps
    pk.bind_task('report').unschedule(s)
    pk.bind_task('report')().result  # a bell
    assert wait_for(lambda: not is_supervised(site))

def reboot(site, code):
    "What a process of the next run of the machine says, after nobody of this one is left"
    pk.Pool(site=site).stop()
    site.close()
    return run(site.path, 'from parkit import storage, system\nstorage._boot_id = system._boot_id = lambda: "another boot"\nsite = pk.set_site(sys.argv[2])\nfrom parkit.scheduling import _agenda\nfrom parkit.ledger import _ledger\n' + code, site.path, PARKIT_SITE=site.path)

def test_schedules_survive_a_reboot(site):
    make_task().schedule(later(), 1)
    moment = time.time() + DAY + 1
    said = reboot(site, f'''
s, = [pk.Schedule(_agenda(site), id) for id in _agenda(site).plans()]  # `schedules()` would start workers, on this boot
_agenda(site).step({moment})
say([s.count, s.last.status, s.last.task])
''')
    assert said == [1, 'submitted', 'task/report']

def test_a_call_that_was_running_at_the_reboot_is_made_again(site):
    s = make_task().schedule(later(), 1)
    pk.Pool().stop()
    moment = time.time() + DAY + 1
    _agenda(site).step(moment)
    id = s.last.id
    said = reboot(site, f'''
_agenda(site).step({moment} + 1)
_agenda(site).step({moment} + 2)
plan, = _agenda(site).plans().values()
say([plan.calls, plan.last, pk.AsyncTrace(_ledger(site), plan.last).status])
''')
    assert said == [1, id, 'submitted']

def test_a_generator_is_refused(site):
    @pk.task
    def numbers(): yield 1
    with pytest.raises(TypeError, match='have it put its items into a Queue'): numbers.schedule(later())

def test_a_call_whose_trace_has_gone_is_not_made_again(site):
    s = make_task().schedule(later())
    moment = time.time() + DAY + 1
    _agenda(site).step(moment)
    assert s.last.result == 1
    ledger = _ledger(site)
    write(ledger._store, lambda txn: txn.delete(ledger._key(_RECORD, s.last.id)))
    _agenda(site).step(moment + 1)
    assert traces(site) == [] and runs() == [None]
    _agenda(site).step(moment + DAY)  # it is not waited for either
    assert s.count == 2


# --- after a reboot, and what is shown of it

def _tutorial():
    "The code blocks of the tutorial that are not Python: those for cron and systemd"
    cells = json.loads((root/'nbs/tutorials/background_work.ipynb').read_text())['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    [cron] = re.findall(r'^@reboot (.*)$', text, re.M)
    unit = configparser.ConfigParser(interpolation=None, delimiters=['='])
    unit.optionxform = str
    unit.read_string(re.findall(r'```ini\n(.*?)```', text, re.S)[0])
    service = unit['Service']
    assert (service['Type'], service['RemainAfterExit'], unit['Install']['WantedBy']) == ('oneshot', 'yes', 'default.target')
    return dict(cron=cron, systemd=f'env {service["Environment"]} {service["ExecStart"]}'.replace('%h', '$HOME'), stop=f'env {service["Environment"]} {service["ExecStop"]}'.replace('%h', '$HOME'))

@pytest.mark.parametrize('by', ['cron', 'systemd'])
def test_what_the_system_can_start_at_a_reboot(tmp_path, by):
    "The very lines of the tutorial, run as cron and systemd would, in a home directory of the test's own"
    python, site = tmp_path/'project/.venv/bin/python', pk.Site(tmp_path/'project/data/parkit')
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    def system(line): subprocess.run(['sh', '-c', line], cwd=tmp_path, env=dict(HOME=str(tmp_path), PATH='/usr/bin:/bin', PYTHONPATH=str(root)), check=True, timeout=100)
    pk.set_site(site)
    try:
        @pk.task
        def tick(): return 1
        schedule = tick.schedule(pk.Periodic(frequency=pk.Frequency.Second))
        pk.Pool().stop()
        made = schedule.count
        assert repr(schedule).endswith(', once the pool runs)') and '1 schedule waits for them, due ' in repr(pk.Pool())
        system(_tutorial()[by])
        assert wait_for(lambda: schedule.count > made and _has_finished(schedule))
        assert re.search(r', next \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+\)$', repr(schedule)) and ', running, next schedule 2' in repr(pk.Pool())
        system(_tutorial()['stop'])
        assert not is_supervised(site)
    finally:
        pk.Pool(site=site).stop()
        site.close()

def test_what_a_schedule_and_the_pool_show(site, single, double):
    assert repr(pk.Pool()) == 'Pool(1 worker, stopped)'
    schedule = double.schedule(pk.Cron('0 3 * * *', tz=BERLIN), 1)
    other = double.schedule(pk.Cron('0 5 * * *', tz='UTC'), 2)
    assert re.fullmatch(r"Schedule\(task/double, Cron\(expression='0 3 \* \* \*', tz='Europe/Berlin'\), next \d{4}-\d\d-\d\d 03:00:00 CES?T\)", repr(schedule))
    first = min(schedule, other, key=lambda s: s.next_run)
    assert repr(pk.Pool()) == f'Pool(1 worker, running, next schedule {first.next_run:%Y-%m-%d %H:%M:%S %Z})'
    pk.Pool().stop()
    assert repr(other).endswith('05:00:00 UTC, once the pool runs)') and '2 schedules wait for them, due ' in repr(pk.Pool())
    schedule.pause()
    assert repr(schedule).endswith(', paused)') and '; 1 schedule waits for them, due ' in repr(pk.Pool())
    double.unschedule()
    assert repr(schedule) == 'Schedule(unscheduled)' and repr(pk.Pool()) == 'Pool(1 worker, stopped)'

def test_a_schedule_that_has_ended_says_so(site, single, double):
    schedule = double.schedule(pk.Periodic(frequency=pk.Frequency.Second, max_times=1), 1)
    assert wait_for(lambda: schedule.next_run is None) and repr(schedule).endswith(', ended)')
