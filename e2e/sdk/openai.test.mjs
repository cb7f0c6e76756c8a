// The npm package openai, unmodified, through the whole network.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import OpenAI from 'openai'

const { BASE_URL, STUB_BASE_URL, STUB_GONE } = process.env
const client = new OpenAI({ baseURL: BASE_URL, apiKey: 'none', maxRetries: 0 })
const messages = [{ role: 'user', content: 'What is a river?' }]
const answer = 'River: a large natural stream of water.'
const tools = [{
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'Get the weather in a city.',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}]

test('models', async () => {
  const ids = []
  for await (const model of client.models.list()) ids.push(model.id)
  assert.deepEqual(ids, ['pocket'])
})

test('chat', async () => {
  const res = await client.chat.completions.create({ model: 'pocket', temperature: 0, messages })
  assert.equal(res.choices[0].message.content.trim(), answer)
  assert.equal(res.choices[0].finish_reason, 'stop')
  assert.ok(res.usage.completion_tokens > 3)
})

test('stream', async () => {
  const stream = await client.chat.completions.create({
    model: 'pocket', temperature: 0, messages, stream: true, stream_options: { include_usage: true },
  })
  const parts = []
  let usage
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta?.content) parts.push(chunk.choices[0].delta.content)
    usage = chunk.usage ?? usage
  }
  assert.equal(parts.join('').trim(), answer)
  assert.ok(parts.length >= 3, `${parts.length} parts`)
  assert.ok(usage.total_tokens > usage.completion_tokens)
})

test('tools', async () => {
  const stream = client.chat.completions.stream({
    model: 'pocket', temperature: 0, tools, messages: [{ role: 'user', content: 'What is the weather in Paris?' }],
  })
  const [call] = (await stream.finalMessage()).tool_calls
  assert.equal(call.function.name, 'get_weather')
  assert.equal(typeof JSON.parse(call.function.arguments).city, 'string')
})

test('error', async () => {
  const call = client.chat.completions.create({ model: 'no-such-model', messages })
  await assert.rejects(call, (err) => {
    assert.ok(err instanceof OpenAI.NotFoundError, String(err))
    assert.equal(err.code, 'model_not_found')
    assert.match(err.message, /no-such-model.*pocket/)
    return true
  })
})

test('abort stops the engine', async () => {
  const slow = new OpenAI({ baseURL: STUB_BASE_URL, apiKey: 'none', maxRetries: 0 })
  const stream = await slow.chat.completions.create({ model: 'stub', messages, stream: true })
  let parts = 0
  for await (const _ of stream) if (++parts === 3) stream.controller.abort()
  assert.ok(parts < 100, `${parts} parts after the abort`)
  assert.equal((await fetch(STUB_GONE)).status, 200)
})
