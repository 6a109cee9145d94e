"""parkit with one thing broken on purpose: each of these mistakes would be silent, or show once in a million operations, so a test must see it each time.

The torture itself does not see them all: a lock that LMDB has as well, a bell that rings too early. Its judge is told nothing of waiting.
`PARKIT_MUTANT=early_bell PARKIT_TORTURE=60 pytest tests/torture/test_mutants.py -k torture` tells whether the torture does."""
import os, shutil, subprocess, sys
from typing import NamedTuple

import pytest

from helpers import root


class Mutant(NamedTuple):
    "A mistake: text of a module that is replaced, and the test that sees it"
    module: str
    changes: dict[str, str]
    test: str

MUTANTS = dict(
    no_flock=Mutant('system', {'fcntl.flock(self.fd, fcntl.LOCK_EX)  # a signal interrupts it': 'pass', 'if _try_lock(self.fd): return': 'return'},
                    'test_maintenance.py::test_doctor_says_who_holds_locks'),  # and trap 11, which waits a minute for it
    early_bell=Mutant('storage', {'            self._commit_raw()\n            self.committed = True': '            store.ring()\n            self._commit_raw()\n            self.committed = True',
                                  'if self.raw is not None and not self.failed: self.store.ring()': 'if not self.committed: self.store.ring()'},
                      'test_transactions.py::test_bell_is_rung_when_the_commit_can_be_seen'),
    no_second_look=Mutant('transactions', {'if value or any([listener.add(s) for s in reads]): return value, 0': 'if value or [listener.add(s) for s in reads] is None: return value, 0'},
                          'test_transactions.py::test_change_between_looking_and_listening_is_seen'),
    kept_half=Mutant('storage', {'self._end_inner(self.raw.abort)': 'self._end_inner(self.raw.commit)'},
                     'test_transactions.py::test_trap_07_inner_transaction_that_raises_is_undone_alone'),
    blob_under_a_reader=Mutant('storage', {'oldest, all_gone = self.oldest_reader(), True': 'oldest, all_gone = 2**64, True'},
                               'test_storage.py::test_trap_22_old_snapshot_while_large_values_are_overwritten'),
    blob_of_the_living=Mutant('storage', {'if self.site.alive.is_alive(process): continue': 'pass'},
                              'test_processes.py::test_prepared_blob_outlives_the_first_write_of_another_process'),
    lock_kept_by_child=Mutant('system', {'for fd in self.descriptors: os.close(fd)': 'pass'},
                              'test_processes.py::test_trap_34_lock_of_a_killed_parent_is_not_kept_by_its_child'),
    closed_by_child=Mutant('storage', {'            _leak(self.env)\n': '            self.env.close()\n'},
                           'test_processes.py::test_trap_35_fork_keeps_the_snapshot_of_the_parent'),
    code_of_what_is_listed=Mutant('objects', {'self._opened, oid, False)': 'self._opened, oid)'}, 'test_looking.py::test_looking_runs_nothing'),
    pickle_of_what_is_listed=Mutant('codecs', {"except KeyError: raise _not_plain(f'{module}.{name}') from None": 'except KeyError: return super().find_class(module, name)'},
                                    'test_looking.py::test_what_parkit_keeps_for_itself_runs_nothing'),
    foreign_file=Mutant('system', {'return _OWN_NAME.fullmatch(name) is not None': 'return True'}, 'test_foreign.py::test_foreign_files_harm_nobody'))


def _copy(folder, mutant=None):
    "parkit and its tests, with the mistake"
    for name in ('parkit', 'tests'): shutil.copytree(root/name, folder/name, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(root/'pyproject.toml', folder)
    if mutant is None: return
    path = folder/'parkit'/f'{mutant.module}.py'
    code = path.read_text()
    for old, new in mutant.changes.items():
        assert code.count(old) == 1, f'{path.name} does not have this once any longer, so make the same mistake in what it has now: {old}'
        code = code.replace(old, new)
    path.write_text(code)

def _run(folder, *tests):
    "pytest's exit code, and what it has said"
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', *(f'tests/{t}' for t in tests)], cwd=folder,
                          capture_output=True, text=True, timeout=170, env={k: v for k, v in os.environ.items() if not k.startswith('PYTEST')})
    return done.returncode, done.stdout[-3000:] + done.stderr[-1000:]


def test_copy_without_a_mistake_passes(tmp_path):
    "What is told of the others is due to their mistakes"
    _copy(tmp_path)
    code, said = _run(tmp_path, MUTANTS['kept_half'].test)
    where = subprocess.run([sys.executable, '-c', 'import parkit; print(parkit.__file__)'], cwd=tmp_path, capture_output=True, text=True).stdout
    assert code == 0 and where.startswith(f'{tmp_path}/parkit/'), f'{where} {said}'


@pytest.mark.parametrize('name', MUTANTS)
def test_mistake_is_seen(tmp_path, name):
    _copy(tmp_path, MUTANTS[name])
    code, said = _run(tmp_path, MUTANTS[name].test)
    assert code == 1, f'{MUTANTS[name].test} has not seen it: {said}'


@pytest.mark.skipif('PARKIT_MUTANT' not in os.environ, reason='no mistake is named by PARKIT_MUTANT')
@pytest.mark.timeout(0)
def test_torture_sees_the_mistake(tmp_path):
    _copy(tmp_path, MUTANTS[os.environ['PARKIT_MUTANT']])
    done = subprocess.run([sys.executable, '-m', 'pytest', '-q', 'tests/torture/test_torture.py'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-3000:]
