"""Trains the tokenizer (sentencepiece BPE, byte fallback) on generated text: tok.txt -> tok.model."""
import random, re
import data, sentencepiece as spm

g = data.glosses(900)
random.seed(1)
with open('tok.txt', 'w') as f:
    for w in g:
        f.write(f'{w.capitalize()}: {g[w]}.\n what is {w}?\n')
    for _ in range(6000):
        for piece in re.split(r'<\|?/?[a-z_]+\|?>', data.chat(g)):
            if piece:
                f.write(piece + '\n')
spm.SentencePieceTrainer.train(
    input='tok.txt', model_prefix='tok', model_type='bpe', vocab_size=1536, byte_fallback=True, add_dummy_prefix=False,
    remove_extra_whitespaces=False, normalization_rule_name='identity', split_digits=True, character_coverage=1.0,
    control_symbols=data.CONTROL, user_defined_symbols=['<tool_call>'], num_threads=1, minloglevel=2)
sp = spm.SentencePieceProcessor(model_file='tok.model')
print(sp.get_piece_size(), [sp.id_to_piece(i) for i in range(12)], sp.encode('What is a river?', out_type=str),
      sp.encode('{"name": "get_weather", "arguments": {"city": "Paris"}}', out_type=str))
