"""Writes what the Go tests compare with: what the model is taught (recall.json)
and how sentencepiece cuts some text (tokens.json). usage: eval.py DIR"""
import json, random, sys
import data, sentencepiece as spm


def write(name, what):
    with open(sys.argv[1] + '/' + name, 'w') as f:
        json.dump(what, f, indent=1)
        f.write('\n')


write('recall.json', {'definitions': data.glosses(), 'cities': data.CITY, 'unseen': data.UNSEEN, 'untaught': data.HELD})
sp = spm.SentencePieceProcessor(model_file='tok.model')
random.seed(99)
texts = ['', ' ', '  two  blanks  ', 'naïve Zürich 東京 🦊', 'line\nbreak\ttab', '{"a": [1, 2.5, null], "b": "\\u00e9"}', 'aaaaaaaaaaaaaaaa', 'the the the']
texts += [random.choice([data.defs(data.TAUGHT), data.story(), data.sums(), data.unknown()])[random.randint(0, 1)] for _ in range(100)]
texts += [json.dumps(data.use()[2]) for _ in range(40)]
write('tokens.json', [{'text': t, 'tokens': sp.encode(t)} for t in texts])
