"The page `nbs/howto/settings.ipynb` names every setting and every environment variable that there is"
import inspect, json, re
from dataclasses import fields
from pathlib import Path

import parkit as pk
from parkit.calls import _options

root = Path(__file__).resolve().parent.parent
_cells = json.loads((root/'nbs/howto/settings.ipynb').read_text())['cells']
_rows = [line for cell in _cells if cell['cell_type'] == 'markdown' for line in ''.join(cell['source']).splitlines() if line.startswith('|')]
_named = {name for row in _rows for cell in re.split(r'(?<!\\)\|', row)[1:2] for name in re.findall(r'`(\w+)`', cell)}


def _parameters(function): return {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def test_every_environment_variable():
    folders = [root/'parkit', root/'tests', root/'tools', root/'benchmarks']
    text = '\n'.join(path.read_text() for folder in folders for path in sorted(folder.rglob('*.py')))
    found = {name for line in text.splitlines() if 'environ' in line for name in re.findall(r'\b(PARKIT_[A-Z_]+)', line)}
    assert {'PARKIT_SITE', 'PARKIT_TORTURE', 'PARKIT_FUZZ'} <= found
    assert not found - _named


def test_every_setting_of_the_pool():
    found = {name for name, o in vars(pk.Pool).items() if isinstance(o, property) and o.fset} | {'size'}
    assert {'idle_timeout', 'keep_traces'} <= found
    assert not found - _named


def test_every_option_of_tasks_sites_and_schedules():
    found = _parameters(pk.task) | _parameters(_options) | _parameters(pk.Site.__new__) - {'create'}
    found |= {f.name for cls in (pk.Periodic, pk.Cron) for f in fields(cls) if not f.name.startswith('_')}
    assert {'retries', 'map_size', 'catch_up'} <= found
    assert not found - _named


def test_defaults_are_those_of_the_code(site):
    text = '\n'.join(_rows)
    pool = pk.Pool(site=site)
    for name, unit in (('idle_timeout', 'seconds'), ('keep_traces', 'calls'), ('keep_days', 'days')):
        row = next(row for row in _rows if row.startswith(f'| `{name}`'))
        assert f'| {getattr(pool, name):,.0f} {unit} |' in row
    assert site.map_size == 2**36 and site.inline_limit == 2**18 and pool.keep_bytes == 2**30 and text.count('2**36') == text.count('2**18') == text.count('2**30') == 1
