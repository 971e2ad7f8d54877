import requests

response = requests.post(
    "http://localhost:8080/api/v1/generate",
    headers={"Authorization": "Bearer YOUR_API_KEY"},
    json={"prompt": "实现快速排序算法", "language": "python", "timeout": 10000},
)
print(response.json()["code"])
