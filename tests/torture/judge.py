"""What the torture must have left, according to the journals, and what it has left: run in a process of its own, after all others.

A problem is a kind and a text; of the kinds in `LOSSES` each one is something that was acknowledged and is not there,
something that is there and must not be, or something that was read and never was."""
import bisect, json, os, sys
from collections import Counter, defaultdict
from uuid import UUID

import numpy as np

import parkit as pk
from journal import parts, stem, stories
from parkit.codecs import BLOB, decode, split_key
from parkit.maintenance import _Checker, _check_namespace
from parkit.storage import BLOBS, CLASSES, KEY_LIMIT, NAMES, OBJECTS, TRASH, _ID
from torturer import ACCOUNTS, KEYS, MONEY, OPS, RING, ROOM, STORES, tag_of

INF = float('inf')
LOSSES = 'lost', 'double', 'wrong'
_counted = {'count', 'count_marked', 'fork_inside'}


class Register:
    "What happened to one key: who wrote, who removed, who read what"
    def __init__(self, name): self.name, self.writes, self.removals, self.reads, self.taken = name, {}, [], [], []
    def write(self, tag, op, sure): self.writes[tag] = op.start, op.end, sure
    def remove(self, op, sure): self.removals.append((op.start, op.end, sure))
    def read(self, tag, op): self.reads.append((tag, op.start, op.end, op))
    def take(self, tag, op):
        self.read(tag, op)
        self.taken.append((tag, op))

    def judge(self, bad):
        sure = sorted([(s, e) for s, e, sure in [*self.writes.values(), *self.removals] if sure])
        starts, first_end = [s for s, _ in sure], [INF]
        for _, e in reversed(sure): first_end.append(min(first_end[-1], e))
        first_end.reverse()  # of those that began at `starts[i]` or later, when the first had ended
        written = sorted((e, s) for s, e, sure in self.writes.values() if sure)
        ends, last_start = [e for e, _ in written], [-1]
        for _, s in written: last_start.append(max(last_start[-1], s))
        gone = sorted((s, e) for s, e, _ in self.removals)
        gone_starts, gone_end = [s for s, _ in gone], [-1]
        for _, e in gone: gone_end.append(max(gone_end[-1], e))
        first_taken = {}
        for tag, op in self.taken:
            if tag in first_taken: bad('double', f'{self.name}: two have taken {tag}: {first_taken[tag]} and {op}')
            first_taken[tag] = op
        for tag, start, end, op in self.reads:
            if tag is None:  # a write that had ended before, and that nothing can have removed
                if last_start[bisect.bisect_left(ends, start)] > gone_end[bisect.bisect_left(gone_starts, end)]:
                    bad('lost', f'{self.name}: nothing is there for {op}')
            elif tag not in self.writes: bad('wrong', f'{self.name}: {op} has read {parts(tag)}, which nobody has written there')
            else:
                began, ended, _ = self.writes[tag]
                if began > end: bad('wrong', f'{self.name}: {op} has read {parts(tag)} before it was written')
                if first_end[bisect.bisect_right(starts, ended)] < start: bad('lost', f'{self.name}: {op} has read {parts(tag)}, which had been replaced before')
                taker = first_taken.get(tag)
                if taker is not None and taker is not op and taker.end < start: bad('wrong', f'{self.name}: {op} has read {parts(tag)}, which {taker} had taken before')


def is_forked(actor): return actor.rpartition('.')[2].startswith('f')


class Judge:
    def __init__(self, path, folder):
        self.site, self.stories, self.problems = pk.set_site(path), stories(folder), []
        self.actors = {stem(name): story for name, story in self.stories.items()}
        assert len(self.actors) == len(self.stories)
        self.end = max((op.end for s in self.stories.values() for op in s.ops if op.end < INF), default=0) + 1
        self.marks = {ns: dict(pk.Dict(f'{ns}/marks').items()) for ns in STORES}
        self.by_name, self.in_flight, self.forks, self.killed = defaultdict(list), 0, 0, 0
        for story in self.stories.values(): self.settle(story)

    def bad(self, kind, text): self.problems.append((kind, text))

    # --- what became of each operation

    def settle(self, story):
        "Find out what those operations have done of which the journal says only that they began"
        for op in story.ops:
            if op.state == 'error': self.bad('wrong' if op.result.startswith('Wrong') else 'error', f'{op}')
            if op.state in ('open', 'cut'):
                self.in_flight += 1
                op.end = min(op.end, self.end)
                op.state = self.outcome(story, op) if OPS[op.name].marked else 'maybe'
            self.by_name[op.name].append(op)

    def outcome(self, story, op):
        "Whether a transaction was committed: its mark says so; `op.result` is then how many of its marks there are"
        ns = op.args[0]
        marks = op.result if op.state == 'cut' else {n: m.get(story.actor) for n, m in self.marks.items()}
        op.result = None
        mark = marks[ns]
        if not mark or mark[0] != op.n: return 'nothing'
        op.result = mark[1] + 1
        return 'committed'

    def fails(self, op): return bool(OPS[op.name].marked and op.args[-1] is True)

    def happened(self, *names):
        "The operations of these names that have changed something, or may have, and whether that is sure"
        for name in names:
            for op in self.by_name[name]:
                if op.state in ('done', 'committed', 'maybe') and not self.fails(op): yield op, op.state != 'maybe'

    def origin(self, where, tag, *names):
        "Whoever wrote a tag that was found: must have set out to, and not have undone it"
        who, n, i = parts(tag)
        story = self.actors.get(who)
        op = story and next((o for o in story.ops if o.n == n), None)
        if not op or op.name not in names: self.bad('wrong', f'{where}: {tag} is of no such operation ({op})')
        elif i >= 8 or op.state == 'nothing' or self.fails(op): self.bad('wrong', f'{where}: there is {op}, value {i}, which was rolled back')

    # --- each thing

    def registers(self, ns):
        d, keys = pk.Dict(f'{ns}/reg'), {}
        for i in range(len(KEYS)): keys[i] = Register(f'{ns}/reg[{str(KEYS[i])[:10]!r}]')
        least = most = 0
        def tag(op, i=0): return stem(op.actor) << 24 | op.n << 4 | i
        def changed(sure, n=1):
            nonlocal least, most
            least, most = least + n*sure, most + n
        for op, sure in self.happened('set_value', 'give_up'):
            if op.args[0] != ns or op.result is False: continue
            keys[op.args[1]].write(tag(op), op, sure)
            changed(sure)
        for op, sure in self.happened('delete', 'pop', 'edit'):
            if op.args[0] != ns: continue
            r = keys[op.args[1]]
            if sure and not op.result: r.read(None, op); continue
            if op.name == 'edit': r.write(tag(op), op, sure)
            else: r.remove(op, sure)
            if sure and op.name != 'delete': r.take(op.result, op)
            changed(sure)
        for op, sure in self.happened('pop_item'):
            if op.args[0] != ns or sure and not op.result: continue
            for i in [op.result[0]] if sure else keys: keys[i].remove(op, sure)
            if sure: keys[op.result[0]].take(op.result[1], op)
            changed(sure)
        for op, sure in self.happened('set_default'):
            if op.args[0] != ns: continue
            r = keys[op.args[1]]
            if sure and op.result != tag(op): r.read(op.result, op); continue
            r.write(tag(op), op, sure)
            changed(sure)
        for op, sure in self.happened('update'):
            if op.args[0] != ns: continue
            for i, k in enumerate(op.args[1]): keys[k].write(tag(op, i), op, sure)
            changed(sure, len(op.args[1]))
        for op, sure in self.happened('clear'):
            if op.args[0] != ns: continue
            for r in keys.values(): r.remove(op, sure)
            changed(False)  # if there was something in it: to clear nothing is no change
        for op, _ in self.happened('transact'):
            if op.args[0] != ns: continue
            for i, (k, act) in enumerate(zip(*op.args[1:3])):
                sure, found = True, op.result[i] if op.state == 'done' else None
                if act == 's': keys[k].write(tag(op, i), op, True)
                elif found is False: keys[k].read(None, op); continue
                else: keys[k].remove(op, sure := found is True)
                changed(sure)
        for op, sure in self.happened('read_value'):
            if op.args[0] == ns and sure: keys[op.args[1]].read(op.result, op)
        for op, sure in self.happened('scan', 'hold', 'copy'):
            if op.args[0] != ns or not sure or op.result is None: continue
            found = dict(op.result)
            for i, r in keys.items(): r.read(found.get(i), op)
        final = self.last(ns, 'reg')
        found = {KEYS.index(k): tag_of(v) for k, v in d.items()}
        for i, r in keys.items():
            r.read(found.get(i), final)
            r.judge(self.bad)
        version = d.version
        if not least <= version <= most: self.bad('lost', f'{ns}/reg was changed {least} to {most} times, says the journal; its version is {version}')

    def last(self, ns, name):
        "The judge's own look, after all others"
        from journal import Op
        op = Op('judge', 0, self.end + 1, f'{ns}/{name}', ())
        op.end = self.end + 2
        return op

    def slots(self, ns):
        found, registers = pk.Array(f'{ns}/slots')[:], [Register(f'{ns}/slots[{i}]') for i in range(4)]
        for op, _ in self.happened('replace_item'):
            if op.args[0] == ns: registers[op.args[1]].write(stem(op.actor) << 24 | op.n << 4, op, True)
        for r, v in zip(registers, found):
            if tag_of(v) or r.writes: r.read(tag_of(v) or None, self.last(ns, 'slots'))
            r.judge(self.bad)
        if [*pk.Array(f'{ns}/cleared')] and len(pk.Array(f'{ns}/cleared')) > 6: self.bad('wrong', f'{ns}/cleared has more than 6 items')
        for v in pk.Array(f'{ns}/cleared'): self.origin(f'{ns}/cleared', tag_of(v), 'replace_item')

    def pairs(self, ns):
        r, state = Register(f'{ns}/pair'), pk.Dict(f'{ns}/state')
        for op, _ in self.happened('pair'):
            if op.args[0] == ns: r.write(stem(op.actor) << 24 | op.n << 4, op, True)
        for op, sure in self.happened('compare'):
            if op.args[0] == ns and sure and (op.result or r.writes): r.read(op.result or None, op)
        found = {tag_of(pk.Dict(f'{ns}/{name}')['same']) for name in ('left', 'right')} | {state.same}
        if len(found) != 1: self.bad('wrong', f'{ns}: half of a transaction was committed: {found}')
        if r.writes: r.read(min(found) or None, self.last(ns, 'pair'))
        r.judge(self.bad)

    def files(self, ns):
        r, file = Register(f'{ns}/file'), pk.File(f'{ns}/file')
        for op, sure in self.happened('write_file'):
            if op.args == [ns, False] and op.result is not False: r.write(stem(op.actor) << 24 | op.n << 4, op, sure)
        for op, sure in self.happened('read_file'):
            if op.args[0] == ns and sure and (op.result or r.writes): r.read(op.result or None, op)
        if r.writes: r.read(tag_of(np.frombuffer(file.content, np.uint64)) or None, self.last(ns, 'file'))
        r.judge(self.bad)

    def counters(self, ns):
        d, state = pk.Dict(f'{ns}/counts'), pk.Dict(f'{ns}/state')
        for i in range(3):
            ops = [(op, sure) for op, sure in self.happened(*_counted) if op.args[0] == ns and (op.name == 'fork_inside' and i == 1 and (op.result or not sure)
                                                                                          or op.name != 'fork_inside' and op.args[1] == i)]
            self.sum(f'{ns}/counts[{i}]', d[i][0], ops, [(op.result, op) for op, sure in ops if sure and op.state == 'done'])
        guarded = [(op, sure) for op, sure in self.happened('count_under_lock') if op.args[0] == ns and (op.result or not sure)]
        self.sum(f'{ns}/guarded', pk.Dict(f'{ns}/guarded')['n'], guarded, [(op.result, op) for op, sure in guarded if sure])
        marked = [(op, True) for op, _ in self.happened('count_marked') if op.args[0] == ns]
        self.sum(f'{ns}/state.counted', state.counted, marked, [])
        ops = [op for op in self.by_name['transact_async'] if op.args[0] == ns and op.state in ('done', 'committed')]
        values = [(v, op) for op in ops if op.state == 'done' for v in op.result]
        sure = sum(len(op.result) if op.state == 'done' else op.result for op in ops)
        if d['async'][0] != sure: self.bad('lost', f'{ns}: {sure} increments by asyncio tasks, and the counter is at {d["async"]}')
        self.distinct(f'{ns}/counts["async"]', values)
        if [name in pk.Namespace(ns) for name in ('this', 'that')].count(True) != 1: self.bad('lost', f'{ns}: one object, that had one of two names, has {[*pk.Namespace(ns).names()]}')

    def sum(self, name, total, ops, values):
        least = sum(sure for _, sure in ops)
        if not least <= total <= len(ops): self.bad('lost', f'{name} is {total}; {least} increments were acknowledged, and {len(ops) - least} in flight')
        self.distinct(name, values)

    def distinct(self, name, values):
        "Values of a counter, and who counted: no two alike, and rising with time"
        values, latest = sorted(values, key=lambda o: o[0]), -1
        for v, n in Counter(v for v, _ in values).items():
            if n > 1: self.bad('lost', f'{name}: {n} have counted {v}: {[op for w, op in values if w == v]}')
        for v, op in values:
            if op.end < latest: self.bad('wrong', f'{name}: {op} has counted {v} before a smaller number was')
            latest = max(latest, op.start) if len(set(w for w, o in values if o is op)) == 1 else latest

    def bank(self, ns):
        expected = dict.fromkeys(range(ACCOUNTS), MONEY)
        for op, _ in self.happened('transfer'):
            if op.args[0] != ns: continue
            _, i, j, amount, _ = op.args
            expected[i] -= amount
            expected[j] += amount
        found = dict(pk.Dict(f'{ns}/bank').items())
        if found != expected: self.bad('lost', f'{ns}/bank: {found}, and the journals say {expected}')
        for v in pk.Dict(f'{ns}/receipts').values(): self.origin(f'{ns}/receipts', tag_of(v), 'transfer')

    def own(self):
        known = {}
        for story in self.stories.values():
            for op in story.ops:
                if op.name != 'own_value' or op.state == 'error': continue
                ns, i, act = op.args
                at, new = (ns, story.actor, i), stem(op.actor) << 24 | op.n << 4 if act == 's' else None
                known[at] = ([] if op.state == 'done' else known.get(at, [None])) + [new]
        found = {}
        for ns in {ns for ns, _, _ in known}:
            if not pk.Namespace(ns).exists or 'own' not in pk.Namespace(ns): continue
            d = pk.Dict(f'{ns}/own')
            found |= {(ns, *k): tag_of(v) for k, v in d.items()}
        for at in known.keys() | found.keys():
            if found.get(at) not in known.get(at, []): self.bad('lost', f'{at} holds {found.get(at)}, and the journal says {known.get(at)}')

    def log(self, ns):
        found = [tag_of(v) for v in pk.Array(f'{ns}/log')]
        place = {t: i for i, t in enumerate(found)}
        if len(place) != len(found): self.bad('double', f'{ns}/log: {[t for t, n in Counter(found).items() if n > 1]}')
        for t in found: self.origin(f'{ns}/log', t, 'append', 'extend', 'append_marked')
        starts = []
        for op, sure in self.happened('append', 'extend', 'append_marked'):
            if op.args[0] != ns: continue
            tags = [stem(op.actor) << 24 | op.n << 4 | i for i in range(op.args[1] if op.name == 'extend' else 1)]
            at = [place.get(t) for t in tags]
            if at == [None]*len(at) and not sure: continue
            if None in at: self.bad('lost', f'{ns}/log: {op} is at {at}')
            elif at != [*range(at[0], at[0] + len(at))]: self.bad('wrong', f'{ns}/log: {op} is torn: {at}')
            else: starts.append((at[0], len(at), op))
        starts.sort(key=lambda o: o[0])
        self.rising(f'{ns}/log', [op for _, _, op in starts])
        ended = sorted((op.end, at + n) for at, n, op in starts)
        ends, full = [e for e, _ in ended], [0]
        for _, n in ended: full.append(max(full[-1], n))
        for op, sure in self.happened('read_log'):
            if op.args[0] != ns or not sure or not op.result: continue
            at = [place.get(t) for t in op.result]
            if None in at or at != [*range(at[0], at[0] + len(at))]: self.bad('wrong', f'{ns}/log: {op} has read {at}')
            elif at[-1] + 1 < full[bisect.bisect_left(ends, op.start)]: self.bad('lost', f'{ns}/log: {op} has not seen what was there before it began')

    def rising(self, name, ops):
        "What stands later must not have ended before what stands earlier began"
        latest, who = -1, None
        for op in ops:
            if op.end < latest: self.bad('wrong', f'{name}: {op} had ended before {who} began, and stands behind it')
            if op.start > latest: latest, who = op.start, op

    def queues(self, ns):
        self.flow(ns, 'line', self.puts(ns, 'line_up'), [op for op in self.by_name['pop_left'] if op.args[0] == ns],
                  [tag_of(v) for v in pk.Array(f'{ns}/line')], [tag_of(v) for v in pk.Array(f'{ns}/moved')],
                  [op.result for op in self.by_name['move'] if op.args[0] == ns and op.state == 'done' and op.result], True)
        for cls in (pk.Queue, pk.LifoQueue):
            name, q = cls.__name__, cls(f'{ns}/{cls.__name__}')
            puts = [(op, s, n) for op, s, n in self.puts(ns, 'put', 'put_many', 'put_async') if op.args[1] == name and op.result is not False]
            takes = [op for n in ('take', 'take_many', 'take_async') for op in self.by_name[n] if op.args[0] == ns and op.args[1] == name]
            taken = [tag_of(v) for v in pk.Array(f'{ns}/taken')] if cls is pk.Queue else []
            told = [op.result for op in self.by_name['take_over'] if op.args[0] == ns and op.state == 'done' and op.result] if cls is pk.Queue else []
            size, left = q.qsize(), []
            if size > ROOM: self.bad('wrong', f'{ns}/{name} holds {size} items, and has room for {ROOM}')
            copy = q.copy()  # to be emptied; the queue itself stays as it is, so that one can look again
            while not copy.empty(): left += [tag_of(v) for v in copy.get_many(ROOM, False)]
            copy.drop()
            if len(left) != size: self.bad('wrong', f'{ns}/{name} had {size} items, and gave {len(left)}')
            self.flow(ns, name, puts, takes, left[::1 if cls is pk.Queue else -1], taken, told, cls is pk.Queue)

    def puts(self, ns, *names):
        return [(op, sure, op.args[-1] if isinstance(op.args[-1], int) else 1) for op, sure in self.happened(*names) if op.args[0] == ns]

    def flow(self, ns, name, puts, takes, left, moved, told, fifo):
        "Each item that went in is there, or was taken once"
        name, given, doubtful = f'{ns}/{name}', {}, set()
        for op, sure, n in puts:
            for i in range(n):
                t = stem(op.actor) << 24 | op.n << 4 | i
                given[t] = op
                if not sure: doubtful.add(t)
        out = [(t, op) for op in takes if op.state == 'done' and op.result for t in (op.result if isinstance(op.result, list) else [op.result])]
        cut = sum(1 if op.name == 'pop_left' else op.args[-1] for op in takes if op.state == 'maybe')
        seen = Counter([t for t, _ in out] + left + moved)
        for t, n in seen.items():
            if n > 1: self.bad('double', f'{name}: {n} times {given.get(t)}: {[op for o, op in out if o == t]}, {left.count(t)} left, {moved.count(t)} moved')
            if t not in given: self.bad('wrong', f'{name}: {parts(t)} was never put there')
        if missing := set(told) - set(moved): self.bad('lost', f'{name}: moved, and not there: {missing}')
        missing = [t for t in given if t not in seen and t not in doubtful]
        if len(missing) > cut: self.bad('lost', f'{name}: {len(missing)} items are missing, and only {cut} can have been taken by those killed: {[given[t] for t in missing][:5]}')
        if not fifo: return
        for tags in (left, moved): self.in_order(name, tags)
        first = {}
        for t in left: first.setdefault(parts(t)[0], t)
        for t in [t for t, _ in out] + moved:
            if t > first.get(parts(t)[0], INF): self.bad('wrong', f'{name}: {parts(t)} has overtaken {parts(first[parts(t)[0]])}')
        by_producer = defaultdict(list)
        for t, op in sorted(out, key=lambda o: o[0]): by_producer[parts(t)[0]].append(op)
        for ops in by_producer.values(): self.rising(name, ops)

    def in_order(self, name, tags):
        "What one actor has put must stand in the order in which it was put"
        last = {}
        for t in tags:
            if t < last.get(parts(t)[0], 0): self.bad('wrong', f'{name}: {parts(t)} stands behind {parts(last[parts(t)[0]])}')
            last[parts(t)[0]] = t

    def ring(self, ns):
        found = [tag_of(v) for v in pk.Array(f'{ns}/ring', maxsize=RING)]
        ops = [(op, sure) for op, sure in self.happened('go_round') if op.args[0] == ns]
        for t in found: self.origin(f'{ns}/ring', t, 'go_round')
        if len(found) != len(set(found)): self.bad('double', f'{ns}/ring: {found}')
        if len(found) > RING or len(found) < min(RING, sum(op.args[1] for op, sure in ops if sure)): self.bad('lost', f'{ns}/ring has {len(found)} items')
        self.in_order(f'{ns}/ring', found)
        there = {t >> 4 for t in found}
        for op, sure in ops:
            if sure and (stem(op.actor) << 20 | op.n) not in there and sum(o.args[1] for o, _ in ops if o.end > op.start) < RING:
                self.bad('lost', f'{ns}/ring: {op} was not pushed out, and is not there')

    def things(self, ns):
        "Objects under names that change hands"
        drops, lives, unsure = defaultdict(list), {}, defaultdict(list)
        for op, sure in self.happened('drop_thing'):
            if op.args[0] and op.result != 'gone': drops[op.args[0]].append((op, sure))
        for op, _ in self.happened('renew_thing'):
            if op.state == 'done':
                drops[op.result[0]].append((op, True))
                lives[op.result[1]] = f'{op.args[0]}/{op.args[1]}'
            elif op.state != 'done': unsure[f'{op.args[0]}/{op.args[1]}'].append(op)
        for op, sure in self.happened('open_thing'):
            if sure and op.result: lives[op.result] = '/'.join(op.args)
        for uuid, ops in drops.items():
            if len(done := [op for op, sure in ops if sure]) > 1: self.bad('double', f'two have dropped {uuid}: {done}')
        used = [(op, *op.args) for op, sure in self.happened('use_thing') if sure and op.args[1]]
        used += [(op, '/'.join(op.args), op.result) for op, sure in self.happened('open_thing') if sure and op.result]
        never = {op.result[1]: op for op in self.by_name['renew_thing'] if op.state == 'done' and self.fails(op)}
        for op, path, uuid in used:
            if uuid in never:
                if op.result != 'gone': self.bad('wrong', f'{op}, but it was rolled back: {never[uuid]}')
            elif op.result == 'gone':
                if not any(o.start < op.end for o, _ in drops[uuid]) and not any(o.start < op.end for o in unsure[path]): self.bad('lost', f'{op}: nobody has dropped it')
            elif any(sure and o.end < op.start for o, sure in drops[uuid]): self.bad('wrong', f'{op}, but {drops[uuid]} was before')
        for uuid, path in lives.items():
            if not path.startswith(f'{ns}/') or drops[uuid] or unsure[path]: continue
            found = pk.Namespace(ns).get(path.rpartition('/')[2])
            if found is None or str(found.uuid) != uuid: self.bad('lost', f'{path} is {found}, and nobody has dropped {uuid}')
        for o in pk.Namespace(ns):
            if o.name.startswith('thing') and any(sure for _, sure in drops[str(o.uuid)]): self.bad('wrong', f'{o} was dropped, and is there')

    # --- processes

    def processes(self):
        killed = {who for s in self.stories.values() for kind, _, _, who, *_ in s.notes if kind == 'killed'}
        status = {who: rest[0] for s in self.stories.values() for kind, _, _, who, *rest in s.notes if kind == 'reaped'}
        for name, s in self.stories.items():
            if not is_forked(name): continue
            self.forks += 1
            self.killed += status.get(name) == -9 or not s.ended
            expected = (0, -9) if name in killed or s.facts.get('doomed') else (0,)
            if status.get(name, 0) not in expected or not s.ended and -9 not in expected: self.bad('crash', f'the forked child {name} has ended with {status.get(name)}')
        for name, s in self.stories.items():
            if len(s.facts.get('open', ())) > s.facts.get('struck', 0): self.bad(  # Python may lose a descriptor to Ctrl-C: between `os.open` and the name it is given
                'leak', f'{name} has left open (after {s.facts["struck"]} interrupts): {s.facts["open"]}')
            if s.facts.get('threads', 1) != 1: self.bad('leak', f'{name} has left {s.facts["threads"]} threads')

    # --- the tables and files of a namespace

    def structure(self, ns):
        store = self.site.store(ns, True)
        for size in (400_000, 400_000, 400_000, 1):  # a few commits, which sweep and empty the trash
            d = pk.objects.Object.__new__(pk.Dict)
            d._open(f'{ns}/_judge', True, True, None, None, reserved=True)
            d['a'] = bytes(size)
        txn = store.read()
        try:
            self.tables(ns, store, txn)
            if found := _Checker(store, txn).check(): self.bad('structure', f'pk.check: {found}')
        finally: store.end(txn)
        for folder in ('new',):
            if left := os.listdir(os.path.join(store.path, folder)): self.bad('structure', f'{ns}: left in {folder}/: {left}')
        strays = set(os.listdir(store.path)) - {'blobs', 'new', 'bell', 'write.lock', 'data.mdb', 'lock.mdb', 'store.json', 'locks', 'reserve'}
        if strays: self.bad('structure', f'{ns}: {strays}')
        readers = [line for line in store.env.readers().splitlines()[1:] if line.strip() and line.split()[0] != str(os.getpid())]
        if store.env.reader_check() or readers: self.bad('structure', f'{ns}: stale readers {readers}')

    def tables(self, ns, store, txn):
        heads, entries, nodes, infos, names, blobs, trash, refs = {}, Counter(), {}, {}, {}, {}, [], Counter()
        for key, value in store._steps(txn, b'', b'\xff'*9, False):
            key, value, id = bytes(key), bytes(value), bytes(key[:8])
            if key[:1] == NAMES: names[key[1:]] = value
            elif key[:1] == OBJECTS: infos[key[1:]] = pk.objects._Info(*decode(value))
            elif key[:1] == BLOBS: blobs[key[1:].hex()] = _ID.unpack(value)[0]
            elif key[:1] == TRASH: trash.append(key[9:].hex())
            elif key[0]: continue
            elif len(key) == 8: heads[id] = pk.objects._HEAD.unpack(value)
            elif len(key) == KEY_LIMIT: nodes[value[1:]] = id
            else:
                entries[id] += key[8] != 1
                record = bytes(split_key(value)[1])
                if record[0] == BLOB: refs[record[1:17].hex(), _ID.unpack(record[17:25][::-1])[0]] += 1
        def owner(id): return owner(nodes[id]) if id in nodes else id
        found = Counter()
        for id, n in entries.items(): found[owner(id)] += n
        for node in nodes:
            if not entries[node] and node not in nodes.values(): self.bad('structure', f'{ns}: an empty node {node.hex()}')
        if heads.keys() != infos.keys(): self.bad('structure', f'{ns}: {len(heads)} heads, {len(infos)} objects, {len(heads.keys() ^ infos.keys())} of which have only one')
        if names != {info.name.encode(): id for id, info in infos.items() if info.name is not None}: self.bad('structure', f'{ns}: {names}, and {infos}')
        if stray := {*map(owner, entries)} - {*heads}: self.bad('structure', f'{ns}: entries of no object: {stray}')
        for id in heads.keys() & infos.keys():
            size, first, next, _ = heads[id]
            if size != found[id]: self.bad('structure', f'{ns}: an object says it has {size} entries, and has {found[id]}')
            if infos[id].type == 'parkit.Array' and next - first != size: self.bad('structure', f'{ns}: a list of {size} items from {first} to {next}')
        if double := [id for id, n in refs.items() if n > 1]: self.bad('structure', f'{ns}: blobs with two references: {double}')
        if dict(refs.keys()) != blobs: self.bad('structure', f'{ns}: {len(refs)} references, {len(blobs)} in the table: {dict(refs.keys()).items() ^ blobs.items()}')
        if trash: self.bad('structure', f'{ns}: trash is left: {trash}')
        files = {f.name: f.stat().st_size for f in os.scandir(os.path.join(store.path, 'blobs'))}
        if files != blobs: self.bad('structure', f'{ns}: {len(files)} files of blobs, {len(blobs)} in the table: {[*files.items() ^ blobs.items()][:4]}')

    def anonymous(self):
        "Objects without a name are gone with the last who held them, those excepted that something stored refers to"
        pk.gc()
        kept, store = {str(o.uuid) for o in pk.Dict('fast/refs').values()}, self.site.store(pk.objects.ANONYMOUS, True)
        found = pk.objects._read_if_any(store, lambda txn, zero_copy: [pk.objects._Info(*decode(v)).uuid for _, v in store.scan(txn, OBJECTS, CLASSES)]) or []
        if left := {str(UUID(bytes=uuid)) for uuid in found} - kept: self.bad('leak', f'{len(left)} objects without a name are left, {len(kept)} are referred to')

    def whole_site(self):
        self.anonymous()
        for ns in self.site.namespaces(True): self.structure(ns)
        alive = os.path.join(self.site.path, '@', 'alive')
        self.site.alive.neighbours()
        if strays := set(os.listdir(alive)) - {self.site.alive.id}: self.bad('structure', f'left in @/alive: {[(n, os.path.getsize(os.path.join(alive, n))) for n in strays]}')
        if strays := set(os.listdir(os.path.dirname(alive))) - {'alive', 'setup.lock'}: self.bad('structure', f'left in @: {strays}')
        for ns in STORES:
            if found := _check_namespace(self.site.store(ns, True)): self.bad('structure', f'pk.check: {found}')  # its pages, too

    def report(self):
        for ns in STORES:
            for part in (self.registers, self.slots, self.pairs, self.files, self.counters, self.bank, self.log, self.queues, self.ring, self.things): part(ns)
        self.own()
        self.processes()
        self.whole_site()
        self.site.close()
        return dict(problems=self.problems, ops={n: len(o) for n, o in self.by_name.items()}, in_flight=self.in_flight,
                    forks=self.forks, killed=self.killed, losses=sum(kind in LOSSES for kind, _ in self.problems))

if __name__ == '__main__': print(json.dumps(Judge(*sys.argv[1:]).report()))
