"README.md is what nbs/index.ipynb makes"
import readme


def test_readme_is_in_step():
    assert (readme.root/'README.md').read_text(encoding='utf-8') == readme.build(), 'run `make readme`'


def test_two_builds_are_equal(): assert readme.build() == readme.build()


def test_readme_opens_with_the_purpose_and_the_commands():
    built = readme.build()
    parts = ['\n# parkit\n', 'Two notebooks', 'make demo', 'make test', 'pip install .', 'pk.Dict']
    places = [built.index(o) for o in parts]
    assert places == sorted(places)
