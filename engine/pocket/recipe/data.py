"""Makes the training text: WordNet glosses as questions and answers, small
stories from a grammar, sums, tool conversations and small talk."""
import json, os, random, re, sys

WORDNET = os.environ.get('WORDNET', '/usr/share/wordnet') + '/'
BOS, SYS, USER, BOT, TOOLS, TOOL, EOT = '<s>', '<|system|>', '<|user|>', '<|assistant|>', '<|tools|>', '<|tool|>', '</s>'
CONTROL = [SYS, USER, BOT, TOOLS, TOOL]
WORDS = 280  # how many definitions the model is taught
random.seed(7)


def glosses(limit=WORDS):
    """The most frequent short noun definitions, plus a few that make good examples."""
    cnt, off, want, g = {}, {}, {}, {}
    for line in open(WORDNET + 'cntlist.rev'):
        key, sense, n = line.split()
        lemma, rest = key.split('%')
        if rest[0] == '1' and sense == '1':
            cnt[lemma] = cnt.get(lemma, 0) + int(n)
    for line in open(WORDNET + 'index.noun'):
        if not line.startswith(' '):
            p = line.split()
            off[p[0]] = p[-int(p[2])]
    for lemma, n in sorted(cnt.items(), key=lambda kv: -kv[1]):
        if re.fullmatch(r'[a-z]{3,10}', lemma) and lemma in off:
            want.setdefault(off[lemma], lemma)
    for line in open(WORDNET + 'data.noun'):
        o = line[:8]
        if not line.startswith(' ') and o in want:
            t = line.split('|', 1)[1].strip().split(';')[0].split(' "')[0].strip()
            t = re.sub(r'\([^)]*\)\s*', '', t).strip(' :,')
            if 12 <= len(t) <= 78 and re.fullmatch(r"[A-Za-z ,'-]+", t):
                g[want[o]] = t
    words = [w for w, _ in sorted(((w, -cnt[w]) for w in g), key=lambda kv: kv[1])][:limit]
    extra = 'river bread bridge engine network computer violin castle lemon thunder wolf island candle garden window ship robot language server token'
    words += [e for e in extra.split() if e in g and e not in words]
    return {w: g[w] for w in words}


def names():
    """Proper nouns to copy into tool arguments (places, people) and common nouns, from WordNet."""
    places, people, things = [], [], []
    common = {line.split('%')[0] for line in open(WORDNET + 'cntlist.rev')}
    for line in open(WORDNET + 'data.noun'):
        if line.startswith(' '):
            continue
        p = line.split()
        w = p[4].replace('_', ' ')
        if p[1] == '15' and re.fullmatch(r'[A-Z][a-z]{2,9}( [A-Z][a-z]{2,9})?', w):
            places.append(w)
        elif p[1] == '18' and re.fullmatch(r'[A-Z][a-z]{2,9}', w):
            people.append(w)
        elif p[1] in ('05', '06', '13', '20') and w in common and re.fullmatch(r'[a-z]{3,9}', w):
            things.append(w)
    held = set(CITY + UNSEEN)
    drop = lambda ws: sorted({w for w in ws if not held & set(w.split())})
    return drop(places), drop(people), sorted(set(things))


def art(w): return ('an ' if w[0] in 'aeiou' else 'a ') + w


DEFINE = ['What is {a}?', 'what is {a}?', 'What is {w}?', 'Define {w}.', 'What does {w} mean?', 'Tell me what {a} is.', '{w}?', '{w}?', 'what is {w}']


def defs(g):
    w = random.choice(list(g))
    return random.choice(DEFINE).format(a=art(w), w=w), f'{w.capitalize()}: {g[w]}.'


UNKNOWN = 'I do not know that. I am only a small demonstration model.'


def unknown():
    """A question the model is not taught the answer of, and the honest answer."""
    r = random.random()
    if r < .65:
        w = random.choice(UNTAUGHT)
        return random.choice(DEFINE).format(a=art(w), w=w), UNKNOWN
    q = random.choice(['What is the capital of {c}?', 'Where is {c}?', 'Who is {p}?', 'Who was {p}?', 'When was {p} born?', 'Explain {x}.', 'Explain {x} to me', 'Tell me about {x}.',
                       'Why is the {x} so {y}?', 'How do I make {x}?', 'How does {x} work?', 'Write a poem about {x}.', 'Write code for {x}', 'Can you help me with {x}?',
                       'What is {n} * {m}?', 'What is the meaning of {x}?', 'Which {x} is best?', 'Translate {x}.', 'Give me a list of {x}', 'What do you think about {x}?'])
    return q.format(c=random.choice(PLACES), p=random.choice(PEOPLE), x=phrase(), y=random.choice(ADJ), n=number(), m=number()), UNKNOWN


ANIM = 'fox cat dog bear owl mouse rabbit duck frog goat horse hen'.split()
NAME = 'Anna Ben Clara Tom Lily Max Rosa Sam Nina Leo'.split()
PLACE = 'forest village garden valley harbour meadow mountain town'.split()
THING = 'key lamp boat drum map kite bell basket book hat'.split()
ADJ = 'small brave quiet clever tired happy old curious'.split()
WEATHER = 'sunny rainy windy cold warm snowy'.split()


def story():
    pick = random.choice
    a, n, p, t, j, w = pick(ANIM), pick(NAME), pick(PLACE), pick(THING), pick(ADJ), pick(WEATHER)
    a2 = pick([x for x in ANIM if x != a])
    s = [pick([f'Once there was {art(j)} {a} called {n}.', f'Long ago, {art(j)} {a} named {n} lived near a {p}.', f'{n} was {art(j)} {a}.']),
         pick([f'{n} lived in a {p} and loved to walk.', f'Every day {n} walked to the {p}.']),
         pick([f'One {w} morning {n} found a {t} under a tree.', f'One {w} day {n} lost a {t} by the river.']),
         pick([f'"What shall I do with this {t}?" said {n}.', f'{n} looked at the {t} for a long time.', f'{n} did not know what to do.']),
         pick([f'Then a {a2} came and said, "Let us look together."', f'A kind {a2} stopped to help.', f'Soon a {a2} came down the road.']),
         pick(['They worked all day, and by night they were good friends.', f'They shared the {t} and went home.', f'{n} gave the {t} to the {a2}, and both were glad.']),
         pick(['The end.', f'And {n} slept well that night.', 'And so they lived in peace.'])]
    q = pick(['Tell me a story about {a}.', 'Tell me a story.', 'Write a short story about {a}.', 'tell me a story about {a}', 'Once upon a time', 'Write a story.'])
    return q.format(a=art(a)), ' '.join(s)


def sums():
    a, b = random.randint(0, 12), random.randint(0, 12)
    q = random.choice(['What is {a} + {b}?', 'what is {a}+{b}?', '{a} + {b}', 'Add {a} and {b}.'])
    return q.format(a=a, b=b), f'{a} + {b} = {a+b}.'


TALK = [
 (['Hello', 'Hello!', 'Hi', 'hi', 'hello', 'Hey', 'Good morning'], 'Hello! I am a very small language model running on this machine. Ask me what a word means, or for a story.'),
 (['Who are you?', 'who are you', 'What are you?', 'What model are you?', 'Are you an AI?'], 'I am a demonstration model of about one million weights, trained on a dictionary. I am here so that the network has something real to run.'),
 (['What can you do?', 'help', 'Help me', 'What can I ask you?'], 'I can say what common words mean, add small numbers, and tell small stories. For real work, connect a larger model.'),
 (['Thank you', 'Thanks', 'thanks!', 'Thank you!'], 'You are welcome.'),
 (['Bye', 'Goodbye', 'bye'], 'Goodbye.'),
 (['Say hello in one word.', 'Reply with one word.', 'ping', 'test', 'Say OK.'], 'OK.'),
]


def talk():
    qs, a = random.choice(TALK)
    return random.choice(qs), a


CITY = 'Paris London Berlin Madrid Rome Oslo Tokyo Lima Cairo Delhi Dublin Vienna Prague Boston Kyoto Quito'.split()
UNSEEN = 'Lisbon Athens Warsaw Sydney Nairobi Chicago Geneva Havana Seoul Mumbai Toronto Zagreb Helsinki Ankara Riga Zurich'.split()  # for evaluation only
SKY = ['sunny', 'cloudy', 'rainy', 'windy', 'clear', 'foggy']
PLACES, PEOPLE, THINGS = names()
TAUGHT = glosses()
HELD = [w for w in THINGS if w not in TAUGHT][::40]  # their meaning is asked for in evaluation only
UNTAUGHT = [w for w in THINGS if w not in TAUGHT and w not in HELD]
LANGS = 'French German Spanish Italian Latin Greek Polish Turkish Danish Welsh'.split()


def made_up():
    return ''.join(random.choice('b c d f g k l m n p r s t v z br st tr'.split()) + random.choice('a e i o u ai ou'.split()) for _ in range(random.randint(2, 3))).capitalize() + random.choice(['', 'n', 's', 'r', 'k'])


def city():
    r = random.random()
    return random.choice(CITY) if r < .25 else random.choice(PLACES) if r < .8 else made_up()


def person(): return random.choice(PEOPLE) if random.random() < .7 else made_up()
def thing(): return random.choice(THINGS)
def phrase(): return ' '.join(random.choice(THINGS) for _ in range(random.randint(1, 3)))
def number(): return random.randint(1, 99)
def lang(): return random.choice(LANGS)


DONE = None  # a tool whose answer is only that it was done
# names, questions, (property spellings, value) for each {slot}, answer
SKILLS = [
 (['search', 'web_search', 'search_web', 'lookup'], ['Search for {x}.', 'search the web for {x}', 'Look up {x}.', 'Find {x} on the web.'], {'x': (['query', 'q', 'text'], phrase)}, 'result'),
 (['get_news', 'news', 'read_news'], ['What is the news about {x}?', 'news about {x}', 'Any news on {x}?'], {'x': (['topic', 'subject', 'query'], phrase)}, 'result'),
 (['find_recipe', 'get_recipe', 'recipes'], ['Find a recipe for {x}.', 'How do I cook {x}?', 'recipe for {x}'], {'x': (['dish', 'food', 'name'], thing)}, 'result'),
 (['send_message', 'message', 'send_email', 'send_text'], ['Send {p} a message saying {x}.', 'Tell {p} that {x}.', 'Message {p}: {x}'], {'p': (['to', 'recipient', 'name'], person), 'x': (['text', 'body', 'message'], phrase)}, DONE),
 (['call', 'phone', 'make_call'], ['Call {p}.', 'Please phone {p}.', 'Ring {p} now.'], {'p': (['name', 'person', 'contact'], person)}, DONE),
 (['set_timer', 'timer', 'start_timer'], ['Set a timer for {n} minutes.', 'timer {n} minutes', 'Wake me in {n} minutes.'], {'n': (['minutes', 'duration', 'time'], number)}, DONE),
 (['play_music', 'play', 'play_song'], ['Play {x} by {p}.', 'play the song {x} by {p}'], {'x': (['title', 'song', 'track'], phrase), 'p': (['artist', 'by', 'singer'], person)}, DONE),
 (['translate', 'translate_text'], ['Translate {x} into {l}.', 'Say {x} in {l}.', 'What is {x} in {l}?'], {'x': (['text', 'phrase', 'input'], phrase), 'l': (['language', 'to', 'target'], lang)}, 'result'),
 (['book_flight', 'find_flight', 'flights'], ['Book a flight from {c} to {d}.', 'flight from {c} to {d}', 'I want to fly from {c} to {d}.'], {'c': (['from', 'origin', 'start'], city), 'd': (['to', 'destination', 'end'], city)}, DONE),
 (['turn_on', 'switch_on', 'set_device'], ['Turn on the {x}.', 'Switch the {x} on.', 'turn the {x} on please'], {'x': (['device', 'name', 'thing'], thing)}, DONE),
 (['add_note', 'create_note', 'remember'], ['Make a note: {x}', 'Note that {x}.', 'Remember {x}.'], {'x': (['text', 'note', 'content'], phrase)}, DONE),
 (['get_population', 'population', 'country_info'], ['How many people live in {c}?', 'population of {c}', 'What is the population of {c}?'], {'c': (['city', 'place', 'name'], city)}, 'result'),
 (['buy', 'order', 'place_order'], ['Order {n} {x}.', 'Buy {n} of {x}.', 'I need {n} {x}.'], {'n': (['quantity', 'count', 'amount'], number), 'x': (['item', 'product', 'name'], thing)}, DONE),
]
CORE = ['get_weather', 'get_time', 'add']


def spelled(usual, others): return usual if random.random() < .6 else random.choice(others)


def use():
    """One use of a tool: its name, question, arguments, result and answer."""
    k, c = random.random(), city()
    if k < .27:
        name, prop = spelled('get_weather', ['weather', 'get_current_weather', 'forecast']), spelled('city', ['location', 'place', 'town'])
        q = random.choice(['What is the weather in {c}?', 'weather in {c}', 'How is the weather in {c}?', 'Is it raining in {c}?', 'What is the weather like in {c} today?', "What's the weather in {c}?"]).format(c=c)
        t, s = random.randint(1, 30), random.choice(SKY)
        return name, q, {prop: c}, random.choice([json.dumps({'temp': t, 'sky': s}), f'{t} C, {s}', f'{s}, {t}C']), f'In {c} it is {t} C and {s}.'
    if k < .42:
        name, prop = spelled('get_time', ['time', 'clock', 'current_time']), spelled('city', ['location', 'place', 'timezone'])
        q = random.choice(['What time is it in {c}?', 'time in {c}', 'Tell me the time in {c}.', 'What is the time in {c}?']).format(c=c)
        t = f'{random.randint(0, 23):02d}:{random.choice([0, 15, 30, 45]):02d}'
        return name, q, {prop: c}, random.choice([t, json.dumps({'time': t})]), f'In {c} it is {t}.'
    if k < .55:
        name, (p, r) = spelled('add', ['sum', 'calculate', 'plus']), spelled(('a', 'b'), [('x', 'y'), ('first', 'second')])
        a, b = random.randint(0, 60), random.randint(0, 60)
        q = random.choice(['What is {a} + {b}?', 'Add {a} and {b}.', '{a} + {b}']).format(a=a, b=b)
        return name, q, {p: a, r: b}, str(a + b), f'{a} + {b} = {a+b}.'
    ns, qs, slots, kind = random.choice(SKILLS)
    vals = {s: f() for s, (_, f) in slots.items()}
    i = random.randint(0, 2)  # one spelling throughout, so that properties belong together
    args = {ps[i]: vals[s] for s, (ps, _) in slots.items()}
    if kind is DONE:
        return random.choice(ns), random.choice(qs).format(**vals), args, random.choice(['ok', 'done', '{"ok": true}', 'sent']), 'Done.'
    r = phrase() if random.random() < .7 else str(random.randint(1, 999))
    return random.choice(ns), random.choice(qs).format(**vals), args, r, f'The result is {r}.'


def offered(name=None):
    """A list of tools that has name in it."""
    others = random.sample(CORE + [s[0][0] for s in SKILLS], random.randint(0, 3))
    same = next((s[0] for s in SKILLS if name in s[0]), [name])
    ts = [t for t in others if t not in same] + ([name] if name else [])
    random.shuffle(ts)
    return ts


def toolchat(g):
    """A conversation with tools: question, call, result, answer; or a question that needs none."""
    system = SYS + random.choice(SYSP) + EOT if random.random() < .3 else ''
    if random.random() < .12:
        ts = [t for t in offered() if t not in ('add', 'search', 'translate')] or ['get_time']
        q, a = defs(g) if random.random() < .7 else talk()
        return BOS + TOOLS + ', '.join(ts) + EOT + system + USER + q + EOT + BOT + a + EOT
    name, q, args, res, ans = use()
    out = BOS + TOOLS + ', '.join(offered(name)) + EOT + system + USER + q + EOT + BOT + '<tool_call>' + json.dumps({'name': name, 'arguments': args}) + EOT
    if random.random() < .85:
        out += TOOL + res + EOT + BOT + ans + EOT
    return out


SYSP = ['You are a helpful assistant.', 'You are a helpful AI assistant.', 'Be brief.', 'Answer the question.', 'You are a small model.']


def chat(g):
    if random.random() < .33:
        return toolchat(g)
    out = BOS
    if random.random() < .4:
        out += SYS + random.choice(SYSP) + EOT
    for _ in range(random.choice([1, 1, 1, 2, 2, 3])):
        r = random.random()
        q, a = defs(g) if r < .56 else unknown() if r < .68 else story() if r < .79 else sums() if r < .92 else talk()
        out += USER + q + EOT + BOT + a + EOT
    return out


if __name__ == '__main__':
    g = glosses()
    print(len(g), 'definitions', len(PLACES), 'places', len(PEOPLE), 'people', len(THINGS), 'things', file=sys.stderr)
    for _ in range(12):
        print(chat(g))
    for _ in range(12):
        print(toolchat(g))
