"""Clocks that are set while processes use them: what lasts, what comes after what, and what is meant by the clock on the wall.

The processes of these tests see clocks that are moved by a library that is preloaded into them (`clock.c`): all of them at once, in the middle of what they do."""
import os, re, select, shutil, signal, struct, subprocess, sys, time
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import wait_for
from helpers import Child, root, run, sleeps

import parkit as pk
from parkit.calls import _Options, _Record
from parkit.ledger import _ledger
from parkit.system import ClockWatch

HOUR, DAY = 3600, 86400
pytestmark = pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('gcc'), reason='needs a compiler, and Linux')


class Clocks:
    "The clocks of the processes that are started by `child` and `run`, and of all that these start"
    def __init__(self, site, library, path):
        self.site, self.path, self.env = site, path, dict(LD_PRELOAD=str(library), TEST_CLOCK=str(path))
        self.wall = self.resting = self.steady = 0  # seconds by which each is ahead of the machine's
        self.set()

    def set(self):
        "Have all processes see them"
        with open(os.open(self.path, os.O_CREAT | os.O_WRONLY), 'wb') as f:
            f.write(struct.pack('=qqq', *(int(s*1e9) for s in (self.wall, self.resting, self.steady))))

    def step(self, seconds):
        "Set the clock on the wall, ahead or back"
        self.wall += seconds
        self.set()

    def sleep(self, seconds):
        "The machine sleeps for so long"
        self.wall, self.steady = self.wall + seconds, self.steady + seconds
        self.set()

    def pass_by(self, seconds):
        "So much time passes while nobody looks"
        self.resting += seconds
        self.sleep(seconds)

    def child(self, code, *args, **options): return Child(self.site, _prelude + dedent(code), *args, **options, **self.env)
    def run(self, code, *args, **options): return run(self.site, _prelude + dedent(code), *args, **options, **self.env)

_prelude = '''
from datetime import datetime, timedelta
from helpers import wait_for
from clock_tasks import *
'''

@pytest.fixture(scope='session')
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp('clock')/'clock.so'
    subprocess.run(['gcc', '-shared', '-fPIC', '-O1', '-o', str(made), str(root/'tests'/'clock.c'), '-ldl'], check=True)
    return made

@pytest.fixture
def clocks(site, library, tmp_path):
    yield Clocks(site, library, tmp_path/'clock')
    pk.Pool(site=site).stop()

STEPS = [pytest.param(2*HOUR, id='ahead'), pytest.param(-HOUR, id='back')]


# --- waiting

@pytest.mark.parametrize('step', STEPS)
def test_a_waiter_is_woken_at_once(clocks, step):
    "By a write, and by a call that ends"
    with clocks.child('''
        never_look_again()
        d = pk.Dict('d')
        say(pk.wait_until(lambda: d.get('a')))
        trace = hold('go')
        say()
        say(trace.result)
    ''') as waiter, clocks.child('''
        hear()
        pk.Dict('d')['a'] = 1
        hear()
        pk.Dict('d')['go'] = 1
        say()
    ''') as writer:
        assert sleeps(waiter.pid)
        clocks.step(step)
        writer.say()
        assert waiter.hear() == 1
        waiter.hear()
        assert wait_for(lambda: 'held' in pk.Dict('d'))
        assert sleeps(waiter.pid)
        clocks.step(-step)
        writer.say()
        assert waiter.hear() == 'go'


def test_a_bell_that_rings_during_a_long_look_is_heard(clocks):
    "The writers have left off ringing by then, as nobody has listened for so long"
    with clocks.child('''
        never_look_again()
        d = pk.Dict('d')
        def look():
            found = d.get('a'), d.get('b')
            if found[0] and not found[1]:
                say()
                hear()
            return found[1]
        say(pk.wait_until(look))
    ''') as waiter:
        assert sleeps(waiter.pid)
        clocks.run("pk.Dict('d')['a'] = 1; say()")
        waiter.hear()
        clocks.pass_by(HOUR)
        clocks.run("pk.Dict('d')['b'] = 2; say()")
        waiter.say()
        assert waiter.hear() == 2


def test_a_waiter_is_woken_at_once_after_the_machine_has_slept(clocks):
    with clocks.child('never_look_again()\nd = pk.Dict("d")\nsay(pk.wait_until(lambda: d.get("a")))') as waiter:
        assert sleeps(waiter.pid)
        clocks.sleep(8*HOUR)
        clocks.run("pk.Dict('d')['a'] = 1; say()")
        assert waiter.hear() == 1


def test_what_was_noted_in_another_boot_does_not_ring_bells_for_as_long_as_that_has_lasted(clocks):
    clocks.run('d = pk.Dict("d")\ntry: pk.wait_until(lambda: d.get("a"), 0.1)\nexcept pk.WaitTimeout: say()')
    clocks.wall = clocks.resting = clocks.steady = -1000*HOUR  # the machine's clocks begin anew
    clocks.set()
    listened = 'd["a"] = 1; say(d._store.lock.is_listened())'
    assert clocks.run(f'd = pk.Dict("d"); {listened}')  # who knows
    clocks.pass_by(2*HOUR)
    assert not clocks.run(f'd = pk.Dict("d"); {listened}')


@pytest.mark.parametrize('step', STEPS)
def test_time_limits_are_as_long_as_they_are(clocks, step):
    "Of the write lock, of `wait_until`, of a `Lock` and of a trace"
    pk.Dict('d'), pk.Lock('lock')
    with clocks.child('''
        d, lock = pk.Dict('d'), pk.Lock('lock')
        lock.acquire()
        with pk.transaction(d):
            say()
            hear()
        lock.release()
        hear()
    ''') as holder, clocks.child('''
        d, lock = pk.Dict('d'), pk.Lock('lock')
        say()
        hear()
        start = time.monotonic()
        for work in (lambda: pk.transaction(d, timeout=2).__enter__(), lambda: pk.wait_until(lambda: d.get('x'), 2)):
            say(failure(work)['type'])
        say(lock.acquire(timeout=2))
        say(1.9*3 < time.monotonic() - start < 40)
    ''') as waiter:
        holder.hear()
        waiter.hear()
        waiter.say()
        for expected in ('TransactionTimeout', 'WaitTimeout', False):
            time.sleep(0.3)  # in the middle of it, most likely
            clocks.step(step)
            assert waiter.hear() == expected
        assert waiter.hear()


@pytest.mark.parametrize('step', STEPS)
def test_doctor_and_the_error_tell_ages_as_they_are(clocks, step):
    with clocks.child('''
        with pk.snapshot(pk.Dict('m/d')), pk.transaction(pk.Dict('n/d')):
            say()
            hear()
    ''') as holder:
        holder.hear()
        clocks.step(step)
        clocks.pass_by(100)
        said, error = clocks.run('''
            store = site.store('n')
            say([repr(pk.doctor()), failure(lambda: store.write(timeout=0))['message']])
        ''')
        ages = [int(s) for s in re.findall(r'(?:open for|write lock for) (\d+) s', said)]
        assert len(ages) == 2 and all(100 <= age < 160 for age in ages), said
        assert 100 <= float(re.search(r'\((\d+)\.\d s\)', error)[1]) < 160, error


# --- calls

@pytest.mark.parametrize('step', STEPS)
def test_calls_are_due_when_their_time_has_passed(clocks, step):
    "Those that are to wait, and those that are to be run again: neither sooner nor later, and in the same order as ever"
    clocks.run("""
        pk.Pool().resize(1)
        note.schedule(pk.Cron('0 0 29 2 *'))  # one that the supervisor sleeps for
        say(note('now').result)
    """)
    clocks.step(-step)
    clocks.run("""
        traces = [note.options(delay=1000)('last'), note.options(delay=1)('first'), note.options(retries=1, backoff=1)('again', fail=1)]
        say()
    """)
    assert wait_for(lambda: 'again' in pk.Array('noted'))
    clocks.step(step)
    assert wait_for(lambda: pk.Array('noted').count('again') == 2 and 'first' in pk.Array('noted'), 20)
    assert 'last' not in pk.Array('noted')
    clocks.sleep(1000)  # that counts
    assert wait_for(lambda: 'last' in pk.Array('noted'), 15)  # at once: a worker that sleeps is told
    assert [t.status for t in pk.traces()] == ['finished']*4


def test_calls_run_in_the_order_they_were_made(clocks):
    "And are listed in it, by whichever process they were made"
    ids = []
    for n, step in enumerate((0, -HOUR, 3*HOUR, -DAY)):
        clocks.step(step)
        ids += clocks.run(f"""
            from helpers import nobody_runs
            pk.Pool().resize(1)
            with nobody_runs(): say([note(({n}, i)).id for i in range(2)])
        """)
    assert [t.id for t in pk.traces()] == ids[::-1]
    clocks.step(HOUR)
    said = clocks.run("""
        from parkit.calls import _ensure
        _ensure(site)
        [t.result for t in pk.traces()]
        clock = [t.submitted <= t.start <= t.end <= datetime.now() for t in pk.traces()]
        since = [len(pk.traces(since=datetime.now() - timedelta(minutes=5))), len(pk.traces(since=300)), len(pk.traces(since=datetime.now()))]
        say([[t.id for t in sorted(pk.traces(), key=lambda t: t.start)], clock, since])
    """)
    assert said == [ids, [True]*8, [8, 8, 0]]
    assert list(pk.Array('noted')) == [(n, i) for n in range(4) for i in range(2)]


def test_calls_that_lay_in_an_outbox_over_a_reboot_wait_no_longer_than_they_were_to(site):
    "Whatever the clock of that boot has shown"
    ledger = _ledger(site)
    record = _Record('task/x', '', 0, b'', bytes(8), 0.0, options=tuple(_Options(delay=10.0)), due=ledger.clock.now() + 5)
    assert ledger._from_outbox(record) == record
    found = ledger._from_outbox(record._replace(due=record.due + DAY))
    assert found.due == pytest.approx(ledger.clock.now() + 10, abs=5)


@pytest.mark.parametrize('step', [pytest.param(60*DAY, id='ahead'), pytest.param(-60*DAY, id='back')])
def test_calls_are_kept_for_as_long_as_they_are_to(clocks, step):
    assert clocks.run("say([note(i).result for i in range(3)])") == [0, 1, 2]
    clocks.step(step)
    prune = "from parkit.ledger import _ledger, prune; say([note(3).result, prune(_ledger(site)), len(pk.traces())])"
    assert clocks.run(prune) == [3, 0, 4]
    clocks.sleep(40*DAY)
    assert clocks.run(prune) == [3, 4, 1]


def test_futures_of_calls_that_end_after_the_clock_was_set_back(clocks):
    "Are told of them at once, not when they are looked through after a while"
    with clocks.child("""
        never_look_again()
        import parkit.tracing
        parkit.tracing.SAFETY_NET = 600.0
        first, second = [hold(key).as_future() for key in ('a', 'b')]
        say(first.result())
        say(second.result())
    """) as child:
        pk.Dict('d')['a'] = 1
        assert child.hear() == 'a'
        clocks.step(-HOUR)
        clocks.run("pk.Dict('d')['b'] = 1; say()")
        assert child.hear() == 'b'


def test_a_call_whose_worker_is_killed_has_not_run_out_of_time_because_the_clock_was_set(clocks):
    with clocks.child("""
        trace = hold.options(timeout=600)('never')
        say(trace.id)
        pk.wait_until(lambda: trace.done)
        say([trace.status, (trace.end - trace.start).total_seconds() < 60])
    """) as child:
        child.hear()
        assert wait_for(lambda: pk.traces('running'))
        clocks.step(2*HOUR)
        os.kill(pk.traces()[0].pid, signal.SIGKILL)
        assert child.hear() == ['crashed', True]


def test_all_processes_of_a_boot_have_one_clock(clocks):
    "Those too that begin after the clock on the wall was set, and those of a container with clocks of its own"
    now = "from parkit.ledger import _ledger; say(_ledger(site).clock.now())"
    first = clocks.run(now)
    clocks.step(DAY)
    assert 0 < clocks.run(now) - first < 60


def test_the_ledger_of_an_older_parkit(clocks):
    "In which nobody has noted what its clock began with"
    now = "from parkit.ledger import _ORIGIN, _ledger; ledger = _ledger(site); "
    first, *_ = clocks.run(now + "say([note(1).id, write(ledger._store, lambda txn: txn.delete(ledger._oid + _ORIGIN))])".replace('write(', 'pk.transactions.write('))
    clocks.step(HOUR)
    found = [clocks.run(now + "say([note(2).result, ledger.clock.now() - time.time(), [t.id for t in pk.traces()][-1]])") for _ in range(2)]
    assert [(result, round(ahead), id) for result, ahead, id in found] == [(2, 0, first)]*2


_container = 'unshare', '--time', '--boottime', '5000', '--monotonic', '7000'

@pytest.mark.skipif(subprocess.run([*_container, 'true'], capture_output=True).returncode != 0, reason='no time namespace can be made here')
def test_a_container_whose_clocks_are_ahead(site):
    "Rings the bells of others, hears theirs, and orders calls as they do"
    with Child(site, """
        from parkit.ledger import _ledger
        never_look_again()
        d = pk.Dict('d')
        say(pk.wait_until(lambda: d.get('a')))
        d['b'] = 1
        say(_ledger(site).clock.now())
    """, command=_container) as inside, Child(site, """
        from parkit.ledger import _ledger
        never_look_again()
        d = pk.Dict('d')
        _ledger(site).clock.now()
        say()
        hear()
        d['a'] = 1
        say(pk.wait_until(lambda: d.get('b')))
        say(_ledger(site).clock.now())
    """) as outside:
        outside.hear()
        assert sleeps(inside.pid)
        outside.say()
        assert inside.hear() == outside.hear() == 1
        assert abs(inside.hear() - outside.hear()) < 60


# --- schedules

def noted(): return list(pk.Array('noted'))

@pytest.mark.parametrize('trigger', ["pk.Periodic(start='now', frequency=pk.Frequency.Second)", "pk.Cron('* * * * * *')"])
def test_what_is_called_each_second_goes_on(clocks, trigger):
    "When the clock is set back, and ahead; what is to be made up for is not what nobody has missed"
    catch_up = f"{trigger[:-1]}, {'catch_up=' + repr('all') if 'Periodic' in trigger else ''})"
    clocks.run(f"s = note.schedule({catch_up}, 1); say()")
    assert wait_for(noted)
    for step in (-HOUR, -400*DAY, 2*HOUR, HOUR):
        clocks.step(step)
        before, start = len(noted()), time.monotonic()
        assert wait_for(lambda: len(noted()) >= before + 3, 25)
        assert len(noted()) - before < time.monotonic() - start + 5
        assert abs(clocks.run("say(pk.schedules()[0].next_run.timestamp() - time.time())")) < 10
    clocks.run("say(note.unschedule())")


def test_a_call_that_is_due_by_the_clock_comes_when_that_is_set_to_its_time(clocks):
    "At once: the supervisor, which sleeps, is told"
    clocks.run("""
        pk.Pool().resize(1)
        then = datetime.now() + timedelta(hours=2)
        note.schedule(pk.Cron(f'{then.minute} {then.hour} * * *'), 1)
        say(note().result)
    """)
    assert sleeps(pk.Pool().status.supervisor)
    clocks.step(2*HOUR)
    assert wait_for(lambda: 1 in noted(), 15)


def test_the_system_is_asked_to_tell(site):
    "By a timer that never ends, unless the clock is set"
    watch = ClockWatch()
    watch.begin()
    try:
        timer = Path(f'/proc/self/fdinfo/{watch.fd}').read_text()
        assert 'clockid: 0\n' in timer and 'settime flags: 03\n' in timer
        assert not select.select([watch.fd], [], [], 0)[0] and not watch.heed()
    finally: watch.end()


_clockwork = '''
import struct
from helpers import nobody_runs
from parkit.scheduling import _agenda
def shift(wall, others=0):
    "Move the clock on the wall, and those that are never set, by so many seconds"
    with open(os.environ['TEST_CLOCK'], 'r+b') as f:
        ahead = struct.unpack('=qqq', f.read())
        f.seek(0)
        f.write(struct.pack('=qqq', *(n + int(s*1e9) for n, s in zip(ahead, (wall, others, others)))))
def move(wall, others=0):
    "The same; then make the calls that are due, and return how many there were"
    shift(wall, others)
    _agenda(site).step(time.time())
    return s.count
def at(*moment): return move((datetime(*moment) - datetime(1970, 1, 1)).total_seconds() - time.time())
def passes(seconds): return move(seconds, seconds)
'''

def test_a_day_is_not_called_twice_when_the_clock_is_set_back(clocks):
    "And none is left out when it was set to a wrong day for a while"
    assert clocks.run(_clockwork + """
with nobody_runs():
    s = note.schedule(pk.Cron('0 3 * * *', tz='UTC', overlap=True))
    say([at(2030, 5, 1, 2, 59), passes(61), at(2030, 5, 1, 2, 59, 30), passes(61), at(2030, 5, 2, 2, 59), passes(61),
         at(2030, 9, 1, 12), at(2030, 5, 2, 12), at(2030, 5, 3, 2, 59), passes(61)])
""") == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_what_is_scheduled_or_resumed_before_anybody_has_seen_that_the_clock_was_set(clocks):
    "Is called as if it had not been"
    assert clocks.run(_clockwork + """
each_hour = pk.Periodic(start='now', frequency=pk.Frequency.Hour, overlap=True)
with nobody_runs():
    first, paused = note.schedule(each_hour, 1), note.schedule(each_hour, 2)
    paused.pause()
    s = first
    move(0)
    shift(5*3600)
    s = note.schedule(each_hour, 3)
    found = [move(1, 1)]
    shift(-9*3600)
    paused.resume()
    found += [move(1, 1), move(3600, 3600), first.count, paused.count]
    say(found)
    """) == [1, 1, 2, 2, 1]


def test_the_clock_may_have_been_wrong_before_a_reboot(clocks):
    "And another boot begins with the time that the clock on the wall shows"
    clocks.wall = 14*365*DAY
    clocks.set()
    second, day = "pk.Periodic(start='now', frequency=pk.Frequency.Second)", "pk.Periodic(start='now', frequency=pk.Frequency.Day)"
    clocks.run(_clockwork + f"""
with nobody_runs(): say([note.schedule(t, n).count for n, t in enumerate(({second}, {day}, pk.Cron('0 3 * * *')))])
    """)
    clocks.wall = 0
    clocks.set()
    assert clocks.run(_clockwork + """
import parkit.scheduling
parkit.scheduling._boot_id = lambda: 'another'
with nobody_runs():
    _agenda(site).step(time.time())
    say(all(s.next_run.timestamp() < time.time() + 2*86400 for s in pk.schedules()))
    """)


# --- files

def test_an_upgraded_package_is_seen_though_the_clock_was_set_back(clocks, tmp_path):
    "Which files go by"
    packages = tmp_path/'site-packages'
    packages.mkdir()
    (packages/'some_package.py').write_text('version = 1\n')
    clocks.step(2*HOUR)
    with clocks.child("""
        sys.path.append(sys.argv[2])
        import some_package
        from parkit.functions import InstalledModules
        installed = InstalledModules()
        hear()
        say(installed.changed())
        hear()
        time.sleep(0.01)  # as it takes a program to start
        say(installed.changed())
    """, packages) as child:
        child.say()
        assert child.hear() is False
        clocks.step(-2*HOUR)
        (packages/'some_package.py').write_text('version = 2\n')
        (packages/'some_package-2.dist-info').mkdir()
        child.say()
        assert child.hear() is True
