"Mistakes that type checkers must find: each line that ends in `# wrong`, and no other"
import parkit as pk


@pk.task
def area(width: float, height: float = 1.0, *, unit: str = 'm') -> str: return f'{width*height} {unit}'

@pk.task(default_sync=True)
def here(n: int) -> list[int]: return [n]

@pk.task(timeout=10)
async def fetch(url: str) -> bytes: return url.encode()

class Model:
    @pk.task
    def fit(self, rows: int) -> float: return rows/2

@pk.task
def counted(n: int) -> int: return n

def power(x: int, y: int = 2) -> int: return x*y

area('wide')  # wrong
area(1, 2, 3)  # wrong
area(1, colour='red')  # wrong
area()  # wrong
area(1) + 'x'  # wrong
area(1).result + 1  # wrong
area(1, sync=True).done  # wrong
area.options(timeout=2)('wide')  # wrong
area.schedule(pk.Periodic(pk.Frequency.Minute), 'wide')  # wrong
here('x')  # wrong
here(1).result  # wrong
here(1, sync=False)[0]  # wrong
fetch(1)  # wrong
fetch('x').result + 1  # wrong
for x in counted(1): pass  # wrong
Model().fit('x')  # wrong
pk.map(power, [1])  # wrong
pk.map(area, [1])[0] + 1  # wrong
pk.Executor().submit(power, 'x')  # wrong
pk.Executor().submit(power, 1).result() + 'x'  # wrong

d = pk.Dict[str, int]('prices')
d[1] = 2  # wrong
d['x'] = 'y'  # wrong
d.get('x') + 1  # wrong
d.pop('x') + 'x'  # wrong
d.update({'x': 'y'})  # wrong
lists = pk.Dict[str, list[int]]('lists')
with lists.edit('x') as value: value.append('x')  # wrong
a = pk.Array[float]()
a.append('x')  # wrong
q = pk.Queue[str]('jobs')
q.put(1)  # wrong
q.get() + 1  # wrong
f = pk.File('report')
f.open('w').write(b'x')  # wrong
f.open('wb').write('x')  # wrong
