"""The text on which vocabularies are compared: scripts, code, numbers, white space, emoji. Written for this purpose."""

from __future__ import annotations

PARTS = (
    "The harbour master's log for 1987 wasn't lost; it'd been shelved under \"Misc\". They'll find it, won't they? "
    "WE'RE SURE. I'M NOT. He'S odd, y'all'd've guessed. Prices rose 3.7%, from $1,204.50 to £1,249.07 (±0.5).\n",
    "   leading, trailing   \n\n\n\ttabs\t\there  and   runs    of     spaces\r\nCRLF line\r\n\r\nlast\n \n  \n   x\n",
    "def walk(tree, depth=0):\n    for name, node in sorted(tree.items()):\n"
    "        print(f\"{'  ' * depth}{name!r:>12}\")\n"
    "        if isinstance(node, dict):\n            yield from walk(node, depth + 1)  # O(n)\n\treturn None\n",
    "#include <vector>\ntemplate <class T> T *at(std::vector<T> &v, size_t i) { return i < 9 ? &v[i] : nullptr; }\n"
    "SELECT a.id, COUNT(*) FROM a LEFT JOIN b ON a.id=b.a_id WHERE b.x<>'y' GROUP BY 1; -- done\n"
    '{"k": [1, 2.5e-3, true, null], "path": "C:\\\\tmp\\\\x"} <p class="a-b">&amp;</p> http://a.example/p?q=1&r=%20#z\n',
    "0 1 12 123 1234 12345 123456 1234567890 3.14159265358979 1e10 0xDEADBEEF 1_000_000 ١٢٣ १२३ ½ Ⅷ ²³ 10000000\n",
    "Größenwahn, façade, naïve, coöperate, Łódź, žluťoučký kůň, señorita, œuvre, smørrebrød, İstanbul, Ελλάδα.\n",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ґанок, їжак, љубав, ђак.\n",
    "今日はとても良い天気ですね。電車で東京タワーへ行きました。カタカナとひらがな、漢字。「引用」・…\n"
    "我们在图书馆里读了三本书，然后去喝茶。繁體中文：臺灣、龍、憂鬱。\n"
    "오늘은 날씨가 맑아서 산책을 했습니다. ㅋㅋㅋ 한글 자모.\n",
    "في البداية كان هناك طريق طويل، ثُمَّ وصلنا إلى المدينة. שלום לכולם, מה נשמע? سلام دنیا، چطوری؟\n"
    "नमस्ते दुनिया, यह एक छोटा वाक्य है। বাংলা ভাষা। தமிழ் மொழி. ภาษาไทยไม่มีช่องว่าง မြန်မာ ខ្មែរ አማርኛ ქართული Հայերեն\n",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 😀😃😄 ❤️‍🔥 ⌨️ ∑∫√∞≠≤ ←↑→ ─│┌ ①② ﬁ ﬂ ™ © … – — ‘’ “” „ « » ¿¡ 𝔘𝔫𝔦 𓂀 "
    "zero\u200bwidth nb\u00a0space soft\u00adhyphen\n",
    "!!! ??? ... --- === *** ((([[[{{{}}}]]]))) @user #tag $HOME ~/.config ^_^ a|b a&&b a||b "
    "\\n \\t `x` ''' \"\"\" //\\\\ ;; ::\n",
    "ALLCAPS lowerCamelCase snake_case kebab-case X1Y2Z3 aaaaaaaaaaaaaaaaaaaaaaaa zzzzzzzz qxqxqx\n\n\n\n\n        end",
)
