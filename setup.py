"The package as settings.ini describes it. Only the standard library and setuptools are here when pip runs this."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
settings = ConfigParser(delimiters=['='])
settings.read(root/'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature']
pythons = [f'3.{minor}' for minor in range(int(cfg['min_python'].split('.')[1]), 16)]
readme = root/'README.md'


site = f'{cfg["doc_host"]}{cfg["doc_baseurl"]}/'


def requirements(key): return cfg.get(key, '').split()

def description():
    "The README as PyPI shows it, where a link has to be whole"
    if not readme.exists(): return cfg['description']
    text = re.sub(r'\A<!--.*?-->\s*', '', readme.read_text(encoding='utf-8'))
    def whole(m): return f'{m[1]}{cfg["git_url"]}/{"raw" if m[1][0] == "!" else "blob"}/{cfg["branch"]}/'
    return re.sub(r'(!?\[[^\]]*\]\()(?![a-z]+:|#)', whole, text)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=description(),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    url=cfg['git_url'],
    project_urls={
        'Documentation': site,
        'Source': cfg['git_url'],
        'Changelog': f'{site}changelog.html',
        'Issues': f'{cfg["git_url"]}/issues',
    },
    keywords=cfg['keywords'].split(),
    classifiers=[
        f'Development Status :: {statuses[int(cfg["status"]) - 1]}',
        f'Intended Audience :: {cfg["audience"]}',
        'Intended Audience :: Science/Research',
        f'Natural Language :: {cfg["language"]}',
        'Framework :: Jupyter',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Topic :: Database',
        'Topic :: Scientific/Engineering',
        'Topic :: System :: Distributed Computing',
        *(f'Programming Language :: Python :: {version}' for version in pythons),
        'Typing :: Typed',
    ],
    packages=find_packages(include=[cfg['lib_path'], f'{cfg["lib_path"]}.*']),
    package_data={cfg['lib_path']: ['py.typed']},
    zip_safe=False,
    python_requires=f'>={cfg["min_python"]}',
    install_requires=requirements('requirements'),
    extras_require=dict(
        demo=requirements('demo_requirements'),
        dev=requirements('dev_requirements'),
    ),
    entry_points=dict(
        console_scripts=requirements('console_scripts'),
        nbdev=[f'{cfg["lib_path"]}={cfg["lib_path"]}._modidx:d'],
        pytest11=[f'{cfg["lib_path"]}.testing={cfg["lib_path"]}.testing'],
    ),
)
