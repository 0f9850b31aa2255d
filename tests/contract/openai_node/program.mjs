// Speaks to a gemmule server through the openai npm package and prints what it got as one JSON object.
import OpenAI from 'openai'
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { z } from 'zod'

const [url, scriptsText] = process.argv.slice(2)
const scripts = JSON.parse(scriptsText)
const messages = [{ role: 'user', content: 'Hi' }]
const City = z.object({ name: z.string(), people: z.number() })
const weather = {
  name: 'weather',
  description: 'the weather of a city',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
}

let calls = 0
const counting = (...request) => {
  calls += 1
  return fetch(...request)
}
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'any', fetch: counting, timeout: 120_000 })
const body = (script, more) => ({ model: 'scripted', messages, script: scripts[script], ...more })
const ask = (script, more, options) => openai.chat.completions.create(body(script, more), options)

async function gathered(stream) {
  const parts = []
  for await (const part of stream) parts.push(part)
  return parts
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('')

async function fault(work) {
  calls = 0
  try {
    await work()
    return { name: null, calls }
  } catch (error) {
    const { status = null, code = null, message, requestID = null } = error
    return { name: error.constructor.name, status, code, message, requestID, calls }
  }
}

async function running() {
  const page = await (await fetch(`${url}/metrics`)).text()
  const rows = page.split('\n').filter((row) => row.startsWith('gemmule:num_requests_running{'))
  return rows.reduce((sum, row) => sum + Number(row.split(' ').at(-1)), 0)
}

async function millisecondsUntilIdle() {
  const begin = performance.now()
  while ((await running()) > 0 && performance.now() - begin < 5000) await new Promise((r) => setTimeout(r, 10))
  return performance.now() - begin
}

const results = {}

results.models = (await gathered(openai.models.list())).map((model) => model.id)
results.model = await openai.models.retrieve('scripted:latest')
results.whole = await ask('unicode')
const chunks = await gathered(await ask('unicode', { stream: true, stream_options: { include_usage: true } }))
results.streamed = { text: textOf(chunks), usage: chunks.at(-1).usage, pieces: chunks.length }
results.helper = await openai.chat.completions.stream(body('unicode')).finalContent()
results.parsed = (
  await openai.chat.completions.parse(body('city', { response_format: zodResponseFormat(City, 'city') }))
).choices[0].message.parsed
results.cut = await fault(() =>
  openai.chat.completions.parse(body('city', { response_format: zodResponseFormat(City, 'city'), max_tokens: 4 })),
)

const offered = { tools: [{ type: 'function', function: weather }] }
results.called = (await ask('calls', offered)).choices[0]
const callStream = openai.chat.completions.stream(body('calls', offered))
let argumentDeltas = 0
callStream.on('tool_calls.function.arguments.delta', () => (argumentDeltas += 1))
results.calledStreamed = { choice: (await callStream.finalChatCompletion()).choices[0], argumentDeltas }
const runner = openai.chat.completions.runTools({
  model: 'scripted',
  messages,
  script: scripts.calls,
  tools: [{ type: 'function', function: { ...weather, parse: JSON.parse, function: ({ city }) => `${city}: 7 C` } }],
}, { maxChatCompletions: 1 })
await runner.done()
results.toolResults = runner.messages.filter((message) => message.role === 'tool').map((message) => message.content)

results.embedded = await openai.embeddings.create({ model: 'scripted', input: ['a', 'b'] })
results.embeddedFloats = await openai.embeddings.create({
  model: 'scripted',
  input: ['a', 'b'],
  encoding_format: 'float',
})

const respond = (script, more) => ({ model: 'scripted', input: 'Hi', script: scripts[script], ...more })
results.response = (await openai.responses.create(respond('unicode'))).output_text
const events = await gathered(await openai.responses.create(respond('unicode', { stream: true })))
results.responseEvents = events.map((event) => event.type)
results.responseNumbers = events.map((event) => event.sequence_number)
results.responseHelper = (await openai.responses.stream(respond('unicode')).finalResponse()).output_text
results.responseParsed = (
  await openai.responses.parse(respond('city', { text: { format: zodTextFormat(City, 'city') } }))
).output_parsed

results.unknown = await fault(() => openai.chat.completions.create({ model: 'nope', messages }))
results.wrong = await fault(() => ask('unicode', { temperature: 3 }))
results.broken = await fault(() => ask('broken'))
results.brokenStream = await fault(async () => gathered(await ask('broken', { stream: true })))
results.full = await fault(() => ask('memory'))

results.aborted = await fault(async () => {
  const stream = await ask('slow', { stream: true })
  for await (const chunk of stream) if (chunk.choices[0].delta.content) stream.controller.abort()
})
results.abortedIdle = await millisecondsUntilIdle()
const controller = new AbortController()
setTimeout(() => controller.abort(), 300)
results.abortedWhole = await fault(() => ask('slow', {}, { signal: controller.signal }))
results.abortedWholeIdle = await millisecondsUntilIdle()

const begin = performance.now()
const late = await gathered(await ask('silent', { stream: true }))
results.silent = { text: textOf(late), seconds: (performance.now() - begin) / 1000 }
process.stdout.write(JSON.stringify(results))
