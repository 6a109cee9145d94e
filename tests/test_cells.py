"A cell of a live notebook that changes in place what it has read is told, once, that this is not stored"
import pytest
from kernels import notebooks, text
from task_helpers import event_loop  # noqa: F401  a fixture

_SET_UP = '''
import numpy as np
import parkit as pk
from parkit.transactions import cell_notes, watch_cells
class Account(pk.Object):
    tags = ()
    def __init__(self, path): super().__init__(path)
class Point:
    x = 1
d, a, o = pk.Dict('d'), pk.Array('a'), Account('o')
d.update(list=[1], dict={'lr': 1}, set={1}, array=np.zeros(3), bytes=bytearray(b'x'), text='t', nested={'a': [1]}, point=Point())
a.append({'x': 1})
o.tags = ['x']
'''
LOST = ["d['list'].append(2)", "d['dict']['lr'] = 2", "d['set'].add(2)", "d.get('bytes').extend(b'z')",
        "v = d.get('dict'); v.clear()", "d['nested']['a'].append(2)", "a[0]['x'] = 2", "o.tags.append('y')", "for v in [d['list']]: v.sort(reverse=True); v += [3]",
        "with pk.transaction(d): pass\nd['list'].clear()",
        "with pk.transaction(d): d['point'].x = 7", "with pk.transaction(a): a[0]['x'] = 9"]
KEPT = ["d['list']", "v = d['list']; v.append(2); d['list'] = v", "with d.edit('list') as v: v.append(3)", "d['text'] += 'x'",
        "with pk.transaction(d):\n    v = d['list']; v.append(2); d['list'] = v", "v = d.pop('set'); v.add(5); d['set'] = v", "x = [1]; x.append(2)",
        "d['point'].x = 9",  # an instance may keep what it computes
        "v = d['dict']; del d['dict']; v['a'] = 1; d['dict'] = v", "for i in range(1000): d['list']",
        "array = d['array']\narray[0] = 1"]  # the user's second recipe ends with that

@pytest.fixture(scope='module')
def kernel():
    with notebooks(1) as (kernel,):
        kernel.run(_SET_UP)
        yield kernel

def _told(kernel, source):
    outputs = kernel.run(source)
    assert all(o['output_type'] == 'stream' and o['name'] == 'stderr' or o['output_type'] == 'execute_result' for o in outputs), outputs
    return ''.join(o.get('text', '') for o in outputs)

@pytest.mark.parametrize('source', LOST)
def test_what_is_lost_is_told_once(kernel, source):
    kernel.run('watch_cells()')
    assert 'was changed in place after it was read, and that is not stored' in (said := _told(kernel, source)) and said.count('Warning') == 1
    assert ('d.edit' in said) == ('a[0]' not in source and 'o.' not in source)  # which only a Dict has
    if 'transaction(d): d' not in source and 'transaction(a)' not in source: assert _told(kernel, source) == ''

@pytest.mark.parametrize('source', KEPT)
def test_what_is_stored_is_not_told(kernel, source):
    kernel.run('watch_cells()')
    assert _told(kernel, source) == ''
    assert text(kernel.run('len(cell_notes.looks) <= cell_notes.limit')) == 'True'

def test_nothing_is_held_after_the_cell(kernel):
    kernel.run('watch_cells()')
    kernel.run("import gc, weakref\nv = d['array']; r = weakref.ref(v)\ndel v")
    assert text(kernel.run('gc.collect(); r() is None')) == 'True'

def test_no_notes_are_taken_elsewhere(site):
    import parkit as pk
    from parkit.transactions import cell_notes
    d = pk.Dict('d', site=site)
    d['list'] = [1]
    d['list'].append(2)
    assert cell_notes.looks is None
