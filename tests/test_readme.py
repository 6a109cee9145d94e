"README.md and CONTRIBUTING.md are what notebooks make"
import re

import pytest, readme


@pytest.mark.parametrize(['name', 'notebook'], readme.made.items())
def test_file_is_in_step(name, notebook):
    built = readme.build(readme.root/'nbs'/notebook)
    assert (readme.root/name).read_text(encoding='utf-8') == built, 'run `make readme`'
    for link in re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', built): assert (readme.root/link).exists(), link


def test_two_builds_are_equal(): assert readme.build() == readme.build()


def test_readme_opens_with_the_purpose_and_the_commands():
    built = readme.build()
    parts = ['\n# parkit\n', 'Two notebooks', 'pip install .', 'make demo', 'make test', 'pk.Dict']
    places = [built.index(o) for o in parts]
    assert places == sorted(places)
